#include "collectives/broadcast.h"

#include "kernels/kernels.h"

namespace ringreduce {

Broadcast::Broadcast(Channel* channel, const Submission& submission, Output*)
    : channel_(channel),
      topology_(*channel->topology),
      in_(submission.pieces[0].in),
      out_(submission.pieces[0].out),
      bytes_(submission.pieces[0].bytes),
      is_root_(topology_.rank == submission.root),
      steps_(divide_up(bytes_, channel->stream.chunk(bytes_))),
      first_(channel->stream.reserve(steps_)) {
  const int root = submission.root, hosts = topology_.host_count(), host = topology_.host(), root_host = topology_.host_of[root];
  const int root_local = topology_.local_of[root];
  publisher_ = topology_.local_of[topology_.counterpart(host, root_local)];
  publishing_ = publisher_ == topology_.local();
  if (!publishing_) return;
  auto publisher_of = [&](int h) { return channel->world(topology_.counterpart(h % hosts, root_local)); };
  const int position = (host - root_host + hosts) % hosts;
  if (position > 0) previous_ = publisher_of(host + hosts - 1);
  if (position < hosts - 1) next_ = publisher_of(host + 1);
}

Reads Broadcast::reads(const Topology&, const Submission& submission, Output*, const Matrix&) {
  const size_t bytes = submission.pieces[0].bytes;
  return {{{submission.root, 0, 0, bytes}}, {}, bytes};
}

Status Broadcast::advance(bool* moved) {
  RR_TRY(drain(moved));
  if (!publishing_) return Status::ok();
  RR_TRY(receive(moved));
  return stage(moved);
}

// The publisher takes a vacant slot: the root fills it at once, the others post a receive.
Status Broadcast::stage(bool* moved) {
  if (staged_ == steps_ || staged_ >= drained_ + Staging::kSlots) return Status::ok();
  if (!channel_->stream.vacant(first_ + staged_)) return Status::ok();
  const Range bytes = chunk(staged_);
  *moved = true;
  if (previous_ >= 0) {
    const int i = index(staged_);
    RR_TRY(channel_->net->irecv(previous_, channel_->tag(i), slot(staged_), bytes.bytes(), &receives_[i]));
    ++staged_;
    return Status::ok();
  }
  copy(slot(staged_), in_ + bytes.begin, bytes.bytes());
  RR_TRY(publish(staged_));
  ++staged_, ++published_;
  return Status::ok();
}

Status Broadcast::receive(bool* moved) {
  while (previous_ >= 0 && published_ < staged_) {
    bool arrived = false;
    RR_TRY(channel_->net->test(&receives_[index(published_)], &arrived));
    if (!arrived) break;
    RR_TRY(publish(published_));
    ++published_;
    *moved = true;
  }
  return Status::ok();
}

Status Broadcast::publish(uint64_t step) {
  channel_->stream.fill(first_ + step, topology_.local_size());
  if (next_ < 0) return Status::ok();
  const int i = index(step);
  return channel_->net->isend(next_, channel_->tag(i), slot(step), chunk(step).bytes(), &sends_[i]);
}

Status Broadcast::drain(bool* moved) {
  if (drained_ == steps_ || !channel_->stream.filled(first_ + drained_)) return Status::ok();
  // The slot is still being read by the send to the next host.
  bool sent = true;
  if (publishing_ && next_ >= 0) RR_TRY(channel_->net->test(&sends_[index(drained_)], &sent));
  if (!sent) return Status::ok();
  const Range bytes = chunk(drained_);
  if (is_root_) {
    if (out_ != in_) copy(out_ + bytes.begin, in_ + bytes.begin, bytes.bytes());
  } else {
    copy(out_ + bytes.begin, slot(drained_), bytes.bytes());
  }
  channel_->stream.drain_unsettled(first_ + drained_);
  ++drained_;
  *moved = true;
  return Status::ok();
}

std::string Broadcast::where() const {
  return "chunk " + std::to_string(drained_) + " of " + std::to_string(steps_) + " received";
}

}  // namespace ringreduce
