#include "collectives/host_reduce.h"

namespace ringreduce {

void HostReduce::start(const Channel& channel, int tag, const HostBuffer& buffer) {
  channel_ = channel;
  buffer_ = buffer;
  tag_ = tag;
  rail_ = channel.topology->local();
  host_ = channel.topology->host();
  if (buffer.bytes > kDoublingBytes) return ring_.start(channel, tag, buffer);
  busy_ = buffer.bytes > 0;
  started_ = false;
  if (!busy_) return;
  const int hosts = channel.topology->host_count();
  for (power_ = 1; power_ * 2 <= hosts;) power_ *= 2;
  extra_ = hosts - power_;
  // Hosts 0..2*extra_-1 pair up: the odd one folds into the even one and sits out.
  const bool paired = host_ < 2 * extra_;
  virtual_ = paired ? (host_ % 2 ? -1 : host_ / 2) : host_ - extra_;
  enter(paired ? Phase::kFoldIn : Phase::kExchange);
}

void HostReduce::enter(Phase phase) {
  phase_ = phase;
  step_ = 0;
  if (phase == Phase::kFinished) busy_ = false;
}

Status HostReduce::advance(bool* moved) {
  RR_TRY(ring_.advance(moved));
  while (busy_) {
    if (!started_) {
      RR_TRY(begin_step());
      started_ = true;
      *moved = true;
    }
    bool sent = false, received = false;
    RR_TRY(channel_.net->test(&receive_, &received));
    RR_TRY(channel_.net->test(&send_, &sent));
    if (!sent || !received) return Status::ok();
    started_ = false;
    *moved = true;
    RR_TRY(finish_step());
  }
  return Status::ok();
}

Status HostReduce::exchange(int send_to, const char* out, size_t out_bytes, int receive_from,
                            char* in, size_t in_bytes) {
  if (in_bytes) RR_TRY(channel_.net->irecv(receive_from, tag_, in, in_bytes, &receive_));
  if (out_bytes) RR_TRY(channel_.net->isend(send_to, tag_, out, out_bytes, &send_));
  return Status::ok();
}

Status HostReduce::begin_step() {
  const size_t bytes = buffer_.bytes;
  if (incoming_.size() < bytes) incoming_.resize(kDoublingBytes);
  switch (phase_) {
    case Phase::kFoldIn:
      return host_ % 2 ? exchange(peer(host_ - 1), buffer_.data, bytes, 0, nullptr, 0)
                       : exchange(0, nullptr, 0, peer(host_ + 1), incoming_.data(), bytes);
    case Phase::kExchange: {
      const int other = peer(host_of_virtual(virtual_ ^ (1 << step_)));
      return exchange(other, buffer_.data, bytes, other, incoming_.data(), bytes);
    }
    case Phase::kFoldOut:
      return host_ % 2 ? exchange(0, nullptr, 0, peer(host_ - 1), buffer_.data, bytes)
                       : exchange(peer(host_ + 1), buffer_.data, bytes, 0, nullptr, 0);
    case Phase::kFinished: break;
  }
  return Status::ok();
}

Status HostReduce::finish_step() {
  const size_t bytes = buffer_.bytes;
  bool last = false;
  switch (phase_) {
    case Phase::kFoldIn:
      if (host_ % 2) return enter(Phase::kFoldOut), Status::ok();
      buffer_.combine(buffer_.data, buffer_.data, incoming_.data(), true, bytes, false);
      enter(Phase::kExchange);
      break;
    case Phase::kExchange:
      last = (2 << step_) >= power_;
      buffer_.combine(buffer_.data, buffer_.data, incoming_.data(), !(virtual_ & (1 << step_)), bytes, last);
      ++step_;
      if (last) enter(host_ < 2 * extra_ ? Phase::kFoldOut : Phase::kFinished);
      break;
    case Phase::kFoldOut:
      enter(Phase::kFinished);
      break;
    case Phase::kFinished: break;
  }
  return Status::ok();
}

}  // namespace ringreduce
