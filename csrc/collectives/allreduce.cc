#include "collectives/allreduce.h"

namespace ringreduce {

namespace {
// Outputs larger than this leave the caches before anyone reads them again.
constexpr size_t kStreamBytes = 8 << 20;
}  // namespace

Allreduce::Allreduce(Channel* channel, Pieces pieces, const Arithmetic& arithmetic)
    : channel_(channel),
      topology_(*channel->topology),
      pieces_(std::move(pieces)),
      dtype_(arithmetic.dtype),
      reduction_(arithmetic.reduction()),
      scale_(arithmetic.scale(topology_.size)),
      // In place, the lines to be written have just been read: nothing to gain.
      stream_stores_(!pieces_.in_place() && pieces_.bytes() >= kStreamBytes),
      one_host_(topology_.host_count() == 1),
      chunk_(channel->stream.chunk(pieces_.bytes())),
      // A single rank in place has its result already.
      steps_(topology_.size == 1 && pieces_.in_place() && scale_.is_identity()
                 ? 0
                 : divide_up(pieces_.bytes(), chunk_)),
      first_(channel->stream.reserve(steps_)) {
  const int local = topology_.local(), rails = topology_.rails;
  const int reducers = one_host_ ? topology_.local_size() : rails;
  weight_ = local == 0 ? topology_.local_size() - reducers + 1 : local < reducers ? 1 : 0;
}

Reads Allreduce::reads(const Topology& topology, const Submission& submission, Output*, const Matrix&) {
  Reads reads;
  // Where the result is not wanted, there is no memory to reduce a slice to.
  if (submission.kind->root != Kind::Root::kNone) return reads;
  const size_t bytes = submission.pieces[0].bytes;
  for (int i = 0; i < topology.size; ++i) {
    const Range part = slice(bytes, topology.size, i);
    if (i == topology.rank) Reads::add(&reads.inputs, {Read::kAll, part.begin, part.begin, part.bytes()});
    else Reads::add(&reads.results, {i, part.begin, part.begin, part.bytes()});
    reads.largest = std::max(reads.largest, part.bytes());
  }
  reads.begin_with(topology.rank);
  return reads;
}

Allreduce::Slice Allreduce::own_slice(uint64_t step) const {
  Slice own;
  if (!weight_) return own;
  const Range bytes = chunk(step);
  own.range = slice(bytes.bytes(), one_host_ ? topology_.local_size() : topology_.rails, topology_.local());
  pieces_.direct(bytes.begin + own.range.begin, own.range.bytes(), &own.in, &own.out);
  return own;
}

Status Allreduce::advance(bool* moved) {
  if (drained_ < reduced_ && drain()) *moved = true;
  RR_TRY(exchange(moved));
  if (reduced_ < filled_ && reduce_slice()) *moved = true;
  if (filled_ < steps_ && filled_ < drained_ + Staging::kSlots && fill()) *moved = true;
  return Status::ok();
}

bool Allreduce::fill() {
  const uint64_t step = first_ + filled_;
  if (!channel_->stream.vacant(step)) return false;
  const Range bytes = chunk(filled_);
  const Slice own = own_slice(filled_);
  char* slot = channel_->stream.slot(step, topology_.local());
  if (own.in) {
    const Range rest{own.range.end, bytes.bytes()};
    pieces_.gather(bytes.begin, own.range.begin, slot);
    pieces_.gather(bytes.begin + rest.begin, rest.bytes(), slot + rest.begin);
  } else {
    pieces_.gather(bytes.begin, bytes.bytes(), slot);
  }
  channel_->stream.fill(step);
  ++filled_;
  return true;
}

bool Allreduce::reduce_slice() {
  const uint64_t step = first_ + reduced_;
  if (!channel_->stream.filled(step)) return false;
  const Slice own = own_slice(reduced_);
  char* mine = channel_->stream.slot(step, topology_.local()) + own.range.begin;
  if (own.range.bytes()) {
    const int n = topology_.local_size();
    sources_.resize(n);
    for (int i = 0; i < n; ++i) sources_[i] = channel_->stream.slot(step, i) + own.range.begin;
    if (own.in) sources_[topology_.local()] = own.in;
    // The slot, for the others; on one host, the result also goes straight to its place.
    void* targets[2];
    int count = 0;
    if (n > 1 || !one_host_ || !own.in) targets[count++] = mine;
    if (one_host_ && own.out) targets[count++] = own.out;
    ReduceArgs args{targets, count, sources_.data(), n, own.range.bytes() / info(dtype_).size, scale_};
    if (!one_host_) args.scale.post = 1.0;  // applied once, by the last reduction between hosts
    reduce(dtype_, reduction_, args);
  }
  if (one_host_ || !own.range.bytes()) {
    settle(reduced_);
  } else {
    HostBuffer buffer{mine, own.range.bytes(), dtype_, reduction_, scale_.post};
    const int index = static_cast<int>(reduced_ % Staging::kSlots);
    exchanges_[index].start(*channel_, channel_->tag(index), buffer);
    on_net_ = true;
  }
  ++reduced_;
  return true;
}

Status Allreduce::exchange(bool* moved) {
  if (!on_net_) return Status::ok();
  bool busy = false;
  for (uint64_t i = drained_; i < reduced_; ++i) {
    HostReduce& slot = exchanges_[i % Staging::kSlots];
    if (!slot.busy()) continue;
    RR_TRY(slot.advance(moved));
    if (slot.busy()) {
      busy = true;
    } else {
      settle(i);
    }
  }
  on_net_ = busy;
  return Status::ok();
}

bool Allreduce::drain() {
  const uint64_t step = first_ + drained_;
  if (!channel_->stream.settled(step)) return false;
  const Range bytes = chunk(drained_);
  const int reducers = one_host_ ? topology_.local_size() : topology_.rails;
  const bool have_own = one_host_ && own_slice(drained_).in;
  for (int i = 0; i < reducers; ++i) {
    if (have_own && i == topology_.local()) continue;
    const Range part = slice(bytes.bytes(), reducers, i);
    pieces_.scatter(bytes.begin + part.begin, part.bytes(), channel_->stream.slot(step, i) + part.begin, stream_stores_);
  }
  channel_->stream.drain(step);
  ++drained_;
  return true;
}

std::string Allreduce::where() const {
  return "chunk " + std::to_string(drained_) + " of " + std::to_string(steps_) + " drained, " +
         std::to_string(reduced_) + " reduced, " + std::to_string(filled_) + " staged";
}

}  // namespace ringreduce
