#include "collectives/reducescatter.h"

#include "kernels/kernels.h"

namespace ringreduce {

Reducescatter::Reducescatter(Channel* channel, const Submission& submission, Output* output)
    : channel_(channel),
      topology_(*channel->topology),
      in_(submission.pieces[0].in),
      output_(output),
      block_bytes_(submission.counts),
      dtype_(submission.dtype),
      reduction_(submission.reduction()),
      scale_(submission.scale(topology_.size)),
      piece_(channel->stream.chunk(submission.bytes()) / topology_.size / kLine * kLine) {
  size_t offset = 0, largest = 0;
  for (int64_t bytes : block_bytes_) {
    offsets_.push_back(offset);
    offset += static_cast<size_t>(bytes);
    largest = std::max(largest, static_cast<size_t>(bytes));
  }
  steps_ = divide_up(largest, piece_);
  first_ = channel->stream.reserve(steps_);
  output_->counts = {block_bytes_[topology_.rank]};
  for (int rank = 0; rank < topology_.size; ++rank) {
    const bool foreign = topology_.host_of[rank] != topology_.host();
    if (foreign && topology_.counterpart(topology_.host(), topology_.local_of[rank]) == topology_.rank)
      served_.push_back(rank);
  }
}

Reads Reducescatter::reads(const Topology& topology, const Submission& submission, Output* output, const Matrix&) {
  Reads reads;
  output->counts = {submission.counts[topology.rank]};
  size_t at = 0;
  for (int rank = 0; rank < topology.size; ++rank) {
    const size_t bytes = static_cast<size_t>(submission.counts[rank]);
    if (rank == topology.rank) Reads::add(&reads.inputs, {Read::kAll, at, 0, bytes});
    reads.largest = std::max(reads.largest, bytes);
    at += bytes;
  }
  return reads;
}

Status Reducescatter::advance(bool* moved) {
  if (!allocated_) {
    RR_TRY(output_->allocate());
    allocated_ = *moved = true;
  }
  RR_TRY(finish(moved));
  RR_TRY(reduce_pieces(moved));
  if (filled_ < steps_ && filled_ < drained_ + Staging::kSlots && fill()) *moved = true;
  return Status::ok();
}

bool Reducescatter::fill() {
  const uint64_t step = first_ + filled_;
  if (!channel_->stream.vacant(step)) return false;
  char* mine = channel_->stream.slot(step, topology_.local());
  for (int rank = 0; rank < topology_.size; ++rank) {
    const Range bytes = piece(rank, filled_);
    if (bytes.bytes()) copy(mine + rank * piece_, in_ + offsets_[rank] + bytes.begin, bytes.bytes());
  }
  channel_->stream.fill(step);
  ++filled_;
  return true;
}

void Reducescatter::reduce_staged(int rank, uint64_t step, char* to, Scale scale) {
  const size_t bytes = piece(rank, step).bytes();
  if (!bytes) return;
  const int n = topology_.local_size();
  sources_.resize(n);
  for (int i = 0; i < n; ++i) sources_[i] = channel_->stream.slot(first_ + step, i) + rank * piece_;
  void* dst[] = {to};
  reduce(dtype_, reduction_, {dst, 1, sources_.data(), n, bytes / info(dtype_).size, scale});
}

Status Reducescatter::reduce_pieces(bool* moved) {
  if (reduced_ == filled_ || !channel_->stream.filled(first_ + reduced_)) return Status::ok();
  if (topology_.host_count() == 1) {
    reduce_staged(topology_.rank, reduced_, output_->data.get() + piece(topology_.rank, reduced_).begin, scale_);
  } else {
    RR_TRY(start_exchange(reduced_));
  }
  ++reduced_;
  *moved = true;
  return Status::ok();
}

Status Reducescatter::start_exchange(uint64_t step) {
  Slot& s = slot(step);
  const Scale partial{scale_.pre, 1.0};
  const int hosts = topology_.host_count(), tag = channel_->tag(static_cast<int>(step % Staging::kSlots));
  s.outgoing.resize(served_.size() * piece_);
  s.incoming.resize(hosts * piece_);
  s.sends.assign(served_.size(), {});
  s.receives.assign(hosts, {});
  const size_t own = piece(topology_.rank, step).bytes();
  for (int host = 0; host < hosts && own; ++host) {
    if (host == topology_.host()) continue;
    const int from = channel_->world(topology_.counterpart(host, topology_.local()));
    RR_TRY(channel_->net->irecv(from, tag, &s.incoming[host * piece_], own, &s.receives[host]));
  }
  for (size_t i = 0; i < served_.size(); ++i) {
    const size_t bytes = piece(served_[i], step).bytes();
    if (!bytes) continue;
    reduce_staged(served_[i], step, &s.outgoing[i * piece_], partial);
    RR_TRY(channel_->net->isend(channel_->world(served_[i]), tag, &s.outgoing[i * piece_], bytes, &s.sends[i]));
  }
  reduce_staged(topology_.rank, step, &s.incoming[topology_.host() * piece_], partial);
  return Status::ok();
}

void Reducescatter::combine(uint64_t step) {
  const Range bytes = piece(topology_.rank, step);
  if (!bytes.bytes()) return;
  const int hosts = topology_.host_count();
  sources_.resize(hosts);
  for (int host = 0; host < hosts; ++host) sources_[host] = &slot(step).incoming[host * piece_];
  void* dst[] = {output_->data.get() + bytes.begin};
  reduce(dtype_, reduction_,
         {dst, 1, sources_.data(), hosts, bytes.bytes() / info(dtype_).size, {1.0, scale_.post}});
}

Status Reducescatter::finish(bool* moved) {
  if (drained_ == reduced_) return Status::ok();
  Slot& s = slot(drained_);
  bool all = true;
  for (auto* requests : {&s.receives, &s.sends}) {
    for (Request& request : *requests) {
      bool done = false;
      RR_TRY(channel_->net->test(&request, &done));
      all = all && done;
    }
  }
  if (!all) return Status::ok();
  if (topology_.host_count() > 1) combine(drained_);
  channel_->stream.drain_unsettled(first_ + drained_);
  ++drained_;
  *moved = true;
  return Status::ok();
}

std::string Reducescatter::where() const {
  return "step " + std::to_string(drained_) + " of " + std::to_string(steps_) + " finished, " +
         std::to_string(reduced_) + " reduced, " + std::to_string(filled_) + " staged";
}

}  // namespace ringreduce
