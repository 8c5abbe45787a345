#include "collectives/host_ring.h"

#include "kernels/kernels.h"

namespace ringreduce {

void HostBuffer::combine(char* into, const char* mine, const char* theirs, bool mine_first, size_t count_bytes, bool last) const {
  void* dst[] = {into};
  const void* src[] = {mine_first ? mine : theirs, mine_first ? theirs : mine};
  reduce(dtype, reduction, {dst, 1, src, 2, count_bytes / info(dtype).size, {1.0, last ? post : 1.0}});
}

void HostRing::start(const Channel& channel, int tag, const HostBuffer& buffer) {
  const Topology& t = *channel.topology;
  channel_ = channel;
  buffer_ = buffer;
  tag_ = tag;
  host_ = t.host();
  hosts_ = t.host_count();
  next_ = channel.world(t.counterpart((host_ + 1) % hosts_, t.local()));
  previous_ = channel.world(t.counterpart((host_ + hosts_ - 1) % hosts_, t.local()));
  steps_ = 2 * (hosts_ - 1);
  started_ = sent_ = posted_ = received_ = 0;
}

// Reduce-scatter step s sends part host - s, gather step s one part further on; received is the part
// before it.
Range HostRing::part(int step, bool outgoing) const {
  const int shift = gathers(step) ? step - hosts_ : step;
  return slice(buffer_.bytes, hosts_, (host_ - shift - !outgoing + 2 * hosts_) % hosts_);
}

Status HostRing::advance(bool* moved) {
  for (bool more = true; more && busy();) {
    more = false;
    RR_TRY(post_receives());
    RR_TRY(send_next(&more));
    RR_TRY(finish_receive(&more));
    RR_TRY(finish_sends(&more));
    *moved |= more;
  }
  return Status::ok();
}

Status HostRing::post_receives() {
  for (; posted_ < steps_ && posted_ < received_ + kAhead; ++posted_) {
    // A gather step overwrites the part that reduce-scatter sent H-1 steps before.
    if (gathers(posted_) && posted_ - (hosts_ - 1) >= sent_) break;
    const size_t bytes = part(posted_, false).bytes();
    std::vector<char>& incoming = incoming_[posted_ % kAhead];
    if (!gathers(posted_) && incoming.size() < bytes) incoming.resize(bytes);
    if (bytes) RR_TRY(channel_.net->irecv(previous_, tag_, target(posted_), bytes, &receives_[posted_ % kAhead]));
  }
  return Status::ok();
}

Status HostRing::send_next(bool* moved) {
  if (started_ == steps_ || started_ > received_ || started_ == sent_ + kAhead) return Status::ok();
  const Range out = part(started_, true);
  if (ticket_ == kNone) ticket_ = channel_.sends->take();
  if (!channel_.sends->open(ticket_)) return Status::ok();
  ticket_ = kNone;
  if (out.bytes()) RR_TRY(channel_.net->isend(next_, tag_, buffer_.data + out.begin, out.bytes(), &sends_[started_ % kAhead]));
  ++started_;
  *moved = true;
  return Status::ok();
}

Status HostRing::finish_receive(bool* moved) {
  if (received_ == posted_) return Status::ok();
  bool arrived = true;
  RR_TRY(channel_.net->test(&receives_[received_ % kAhead], &arrived));
  if (!arrived) return Status::ok();
  if (!gathers(received_)) {
    const Range in = part(received_, false);
    char* mine = buffer_.data + in.begin;
    buffer_.combine(mine, mine, target(received_), false, in.bytes(), received_ == hosts_ - 2);
  }
  ++received_;
  *moved = true;
  return Status::ok();
}

Status HostRing::finish_sends(bool* moved) {
  if (sent_ == started_) return Status::ok();
  bool gone = true;
  RR_TRY(channel_.net->test(&sends_[sent_ % kAhead], &gone));
  if (!gone) return Status::ok();
  ++sent_;
  channel_.sends->done();
  *moved = true;
  return Status::ok();
}

}  // namespace ringreduce
