#include "collectives/allgather.h"

#include <cstring>

#include "kernels/kernels.h"

namespace ringreduce {

// Results from here on are in no cache when they are read.
static constexpr size_t kPastCaches = 16 << 20;

Allgather::Plan Allgather::make_plan(const Topology& t) {
  const int hosts = t.host_count(), locals = t.local_size();
  Plan plan;
  for (int distance = 0; distance < hosts; ++distance) {
    const std::vector<int>& ranks = t.hosts[(t.host() - distance + hosts) % hosts];
    for (size_t at = 0; at < ranks.size(); at += locals) {
      plan.emplace_back(locals, -1);
      for (size_t i = at; i < ranks.size() && i < at + locals; ++i) plan.back()[i - at] = ranks[i];
    }
  }
  return plan;
}

Allgather::Allgather(Channel* channel, const char* in, size_t bytes, Output* output)
    : channel_(channel),
      topology_(*channel->topology),
      in_(in),
      own_bytes_(static_cast<int64_t>(bytes)),
      output_(output),
      plan_(make_plan(topology_)),
      per_round_(plan_.size()),
      headers_(output->counts.empty()),
      steps_(headers_ * per_round_),
      first_(channel->stream.reserve(steps_)),
      sends_(Staging::kSlots, std::vector<Request>(topology_.host_count())) {
  output_->counts.resize(topology_.size);
}

Reads Allgather::reads(const Topology& topology, const Submission&, Output* output, const Matrix&) {
  Reads reads;
  size_t offset = 0;
  for (int from = 0; from < static_cast<int>(output->counts.size()); ++from) {
    const size_t bytes = static_cast<size_t>(output->counts[from]);
    Reads::add(&reads.inputs, {from, 0, offset, bytes});
    reads.largest = std::max(reads.largest, bytes);
    offset += bytes;
  }
  reads.begin_with(topology.rank);
  return reads;
}

// The header carries the size itself.
Range Allgather::block(int rank, uint64_t round) const {
  if (rank < 0) return {};
  if (round < headers_) return {0, sizeof(int64_t)};
  return chunk_range(output_->counts[rank], chunk_, round - headers_);
}

const char* Allgather::source(uint64_t round) const {
  return round < headers_ ? reinterpret_cast<const char*>(&own_bytes_) : in_ + block(topology_.rank, round).begin;
}

bool Allgather::done() const {
  if (!header_done_ || drained_ < steps_) return false;
  if (sent_rounds_ < steps_ / per_round_ && topology_.host_count() > 1) return false;
  for (const auto& round : sends_)
    for (const Request& send : round)
      if (send.active()) return false;
  return true;
}

Status Allgather::advance(bool* moved) {
  if (!headers_ && !header_done_) RR_TRY(finish_header());
  RR_TRY(drain(moved));
  RR_TRY(receive(moved));
  RR_TRY(stage(moved));
  // The own block goes to the other hosts straight from the tensor, round by round.
  return topology_.host_count() > 1 ? send(sent_rounds_, moved) : Status::ok();
}

Status Allgather::send(uint64_t round, bool* moved) {
  std::vector<Request>& requests = sends_[round % Staging::kSlots];
  for (auto& slot : sends_) {
    for (Request& request : slot) {
      bool sent = false;
      if (request.active()) RR_TRY(channel_->net->test(&request, &sent));
      if (sent) *moved = true;
    }
  }
  if (round * per_round_ >= steps_) return Status::ok();
  for (const Request& request : requests)
    if (request.active()) return Status::ok();
  const Range bytes = block(topology_.rank, round);
  for (int host = 0; host < topology_.host_count() && bytes.bytes(); ++host) {
    if (host == topology_.host()) continue;
    const int to = channel_->world(topology_.counterpart(host, topology_.local()));
    RR_TRY(channel_->net->isend(to, channel_->tag(Channel::kDirect), source(round), bytes.bytes(), &requests[host]));
  }
  ++sent_rounds_;
  *moved = true;
  return Status::ok();
}

Status Allgather::stage(bool* moved) {
  if (staged_ == steps_ || staged_ >= drained_ + Staging::kSlots) return Status::ok();
  const uint64_t step = first_ + staged_;
  if (!channel_->stream.vacant(step)) return Status::ok();
  const uint64_t round = staged_ / per_round_;
  const int rank = plan_[staged_ % per_round_][topology_.local()];
  const Range bytes = block(rank, round);
  char* slot = channel_->stream.slot(step, topology_.local());
  if (rank == topology_.rank) {
    if (bytes.bytes()) copy(slot, source(round), bytes.bytes());
  } else if (bytes.bytes()) {
    RR_TRY(channel_->net->irecv(channel_->world(rank), channel_->tag(Channel::kDirect), slot, bytes.bytes(),
                                &receives_[step % Staging::kSlots]));
  }
  ++staged_;
  *moved = true;
  return Status::ok();
}

// A step is filled once what this rank stages in it is there.
Status Allgather::receive(bool* moved) {
  while (published_ < staged_) {
    bool arrived = true;
    Request& request = receives_[(first_ + published_) % Staging::kSlots];
    if (request.active()) RR_TRY(channel_->net->test(&request, &arrived));
    if (!arrived) break;
    channel_->stream.fill(first_ + published_);
    ++published_;
    *moved = true;
  }
  return Status::ok();
}

Status Allgather::drain(bool* moved) {
  if (drained_ == steps_ || !channel_->stream.filled(first_ + drained_)) return Status::ok();
  const uint64_t step = first_ + drained_, round = drained_ / per_round_;
  const std::vector<int>& ranks = plan_[drained_ % per_round_];
  for (int i = 0; i < topology_.local_size(); ++i) {
    const Range bytes = block(ranks[i], round);
    if (!bytes.bytes()) continue;
    const char* from = channel_->stream.slot(step, i);
    if (round < headers_) {
      std::memcpy(&output_->counts[ranks[i]], from, sizeof(int64_t));
    } else {
      if (ranks[i] == topology_.rank) from = in_ + bytes.begin;
      copy(output_->data.get() + offsets_[ranks[i]] + bytes.begin, from, bytes.bytes(), past_caches_);
    }
  }
  channel_->stream.drain_unsettled(step);
  ++drained_;
  *moved = true;
  return drained_ == steps_ && !header_done_ ? finish_header() : Status::ok();
}

Status Allgather::finish_header() {
  header_done_ = true;
  RR_TRY(output_->check_counts(topology_.world));
  RR_TRY(output_->allocate());
  size_t largest = 0, offset = 0;
  for (int64_t count : output_->counts) {
    offsets_.push_back(offset);
    offset += static_cast<size_t>(count);
    largest = std::max(largest, static_cast<size_t>(count));
  }
  chunk_ = channel_->stream.chunk(offset);
  const uint64_t more = divide_up(largest, chunk_) * per_round_;
  channel_->stream.reserve(more);  // follows the header's steps: one machine runs at a time
  steps_ += more;
  past_caches_ = offset >= kPastCaches;
  return Status::ok();
}

std::string Allgather::where() const {
  return "step " + std::to_string(drained_) + " of " + (header_done_ ? std::to_string(steps_) : "?") + " drained";
}

}  // namespace ringreduce
