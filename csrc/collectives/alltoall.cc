#include "collectives/alltoall.h"

#include <cstring>
#include <numeric>

#include "kernels/kernels.h"

namespace ringreduce {

Alltoall::Alltoall(Channel* channel, const Submission& submission, Output* output, const Matrix& known)
    : channel_(channel),
      topology_(*channel->topology),
      in_(submission.pieces[0].in),
      from_(submission.kind->root == Kind::Root::kFrom ? submission.root : -1),
      to_(submission.kind->root == Kind::Root::kTo ? submission.root : -1),
      send_bytes_(submission.counts),
      output_(output),
      header_filled_(!known.empty()),
      header_drained_(!known.empty()),
      local_bytes_(known) {
  if (known.empty()) header_step_ = channel->stream.reserve(1);
  output_->counts.assign(topology_.size, 0);
  for (size_t from = 0; from * topology_.size < known.size(); ++from)
    output_->counts[from] = static_cast<int64_t>(pair_bytes(static_cast<int>(from), topology_.local()));
  size_t offset = 0;
  for (int64_t bytes : send_bytes_) {
    send_offsets_.push_back(offset);
    offset += static_cast<size_t>(bytes);
  }
}

Reads Alltoall::reads(const Topology& topology, const Submission&, Output* output, const Matrix& bytes) {
  Reads reads;
  output->counts.clear();
  size_t to = 0;
  for (int from = 0; from < topology.size; ++from) {
    const size_t* row = &bytes[from * topology.size];
    const size_t at = std::accumulate(row, row + topology.rank, size_t{0});
    Reads::add(&reads.inputs, {from, at, to, row[topology.rank]});
    to += row[topology.rank];
    output->counts.push_back(static_cast<int64_t>(row[topology.rank]));
    for (int i = 0; i < topology.size; ++i)
      if (i != from) reads.largest = std::max(reads.largest, row[i]);
  }
  reads.begin_with(topology.rank);
  return reads;
}

Status Alltoall::advance(bool* moved) {
  if (phase_ == Phase::kStart) {
    RR_TRY(start());
    phase_ = Phase::kCounts;
    *moved = true;
  }
  if (phase_ == Phase::kCounts) return exchange_counts(moved);
  if (drained_ < filled_ && drain()) *moved = true;
  if (filled_ < steps_ && filled_ < drained_ + Staging::kSlots && fill()) *moved = true;
  if (!net_done_) RR_TRY(test_all(&net_done_));
  if (net_done_) *moved = *moved || done();
  return Status::ok();
}

bool Alltoall::done() const { return phase_ == Phase::kBlocks && drained_ == steps_ && net_done_; }

// Transfers start with the neighbour after this rank, so that not all ranks meet at rank 0.
Status Alltoall::start() {
  const int n = topology_.size, tag = channel_->tag(Channel::kDirectHeader);
  requests_.assign(2 * n, {});
  for (int i = 1; i < n; ++i) {
    const int to = (topology_.rank + i) % n, from = (topology_.rank + n - i) % n;
    if (topology_.host_of[from] != topology_.host() && sends(from, topology_.rank))
      RR_TRY(channel_->net->irecv(channel_->world(from), tag, &output_->counts[from], sizeof(int64_t), &requests_[from]));
    if (topology_.host_of[to] != topology_.host() && sends(topology_.rank, to))
      RR_TRY(channel_->net->isend(channel_->world(to), tag, &send_bytes_[to], sizeof(int64_t), &requests_[n + to]));
  }
  return Status::ok();
}

Status Alltoall::test_all(bool* all) {
  *all = true;
  for (Request& request : requests_) {
    bool done = true;
    if (request.active()) RR_TRY(channel_->net->test(&request, &done));
    *all = *all && done;
  }
  return Status::ok();
}

Status Alltoall::exchange_counts(bool* moved) {
  Staging& stream = channel_->stream;
  const std::vector<int>& locals = topology_.local_ranks();
  if (!header_filled_ && stream.vacant(header_step_)) {
    auto* mine = reinterpret_cast<int64_t*>(stream.slot(header_step_, topology_.local()));
    for (size_t i = 0; i < locals.size(); ++i) mine[i] = send_bytes_[locals[i]];
    stream.fill(header_step_);
    header_filled_ = *moved = true;
  }
  if (header_filled_ && !header_drained_ && stream.filled(header_step_)) {
    for (size_t from = 0; from < locals.size(); ++from) {
      const auto* counts = reinterpret_cast<const int64_t*>(stream.slot(header_step_, static_cast<int>(from)));
      local_bytes_.insert(local_bytes_.end(), counts, counts + locals.size());
      output_->counts[locals[from]] = counts[topology_.local()];
    }
    stream.drain_unsettled(header_step_);
    header_drained_ = *moved = true;
  }
  if (!net_done_) RR_TRY(test_all(&net_done_));
  if (!header_drained_ || !net_done_) return Status::ok();
  *moved = true;
  return start_blocks();
}

Status Alltoall::start_blocks() {
  phase_ = Phase::kBlocks;
  net_done_ = false;
  RR_TRY(output_->check_counts(topology_.world));
  RR_TRY(output_->allocate());
  size_t offset = 0;
  for (int64_t bytes : output_->counts) {
    receive_offsets_.push_back(offset);
    offset += static_cast<size_t>(bytes);
  }
  size_t largest = 0;  // of all pairs on this host: its ranks must agree on the steps
  for (int i = 0; i < topology_.local_size(); ++i)
    for (int j = 0; j < topology_.local_size(); ++j)
      if (i != j) largest = std::max(largest, pair_bytes(i, j));
  if (largest > size_t{1} << 47)
    return {Code::kPeerLost, "a rank of this host has announced a block of " + std::to_string(largest) +
                                 " bytes for another one, which cannot be: its memory was damaged"};
  const size_t chunk = channel_->stream.chunk(largest * topology_.local_size());
  piece_ = to_ < 0 ? chunk / topology_.local_size() / kLine * kLine : chunk;
  steps_ = divide_up(largest, piece_);
  first_ = channel_->stream.reserve(steps_);

  const int n = topology_.size, me = topology_.rank, tag = channel_->tag(Channel::kDirect);
  for (int i = 1; i < n; ++i) {
    const int to = (me + i) % n, from = (me + n - i) % n;
    if (topology_.host_of[from] != topology_.host() && output_->counts[from])
      RR_TRY(channel_->net->irecv(channel_->world(from), tag, output_->data.get() + receive_offsets_[from],
                                  output_->counts[from], &requests_[from]));
    if (topology_.host_of[to] != topology_.host() && send_bytes_[to])
      RR_TRY(channel_->net->isend(channel_->world(to), tag, in_ + send_offsets_[to], send_bytes_[to], &requests_[n + to]));
  }
  if (send_bytes_[me]) copy(output_->data.get() + receive_offsets_[me], in_ + send_offsets_[me], send_bytes_[me]);
  return Status::ok();
}

bool Alltoall::fill() {
  const uint64_t step = first_ + filled_;
  if (!channel_->stream.vacant(step)) return false;
  char* mine = channel_->stream.slot(step, topology_.local());
  for (int to = 0; to < topology_.local_size(); ++to) {
    if (to == topology_.local()) continue;
    const Range bytes = chunk_range(pair_bytes(topology_.local(), to), piece_, filled_);
    const char* from = in_ + send_offsets_[topology_.local_ranks()[to]] + bytes.begin;
    if (bytes.bytes()) copy(mine + part(to), from, bytes.bytes());
  }
  channel_->stream.fill(step);
  ++filled_;
  return true;
}

bool Alltoall::drain() {
  const uint64_t step = first_ + drained_;
  if (!channel_->stream.filled(step)) return false;
  for (int from = 0; from < topology_.local_size(); ++from) {
    if (from == topology_.local()) continue;
    const Range bytes = chunk_range(pair_bytes(from, topology_.local()), piece_, drained_);
    char* to = output_->data.get() + receive_offsets_[topology_.local_ranks()[from]] + bytes.begin;
    if (bytes.bytes()) copy(to, channel_->stream.slot(step, from) + part(topology_.local()), bytes.bytes());
  }
  channel_->stream.drain_unsettled(step);
  ++drained_;
  return true;
}

std::string Alltoall::where() const {
  return phase_ != Phase::kBlocks ? "exchanging counts"
                                  : "step " + std::to_string(drained_) + " of " + std::to_string(steps_) + " received";
}

}  // namespace ringreduce
