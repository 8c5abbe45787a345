#include "mailbox/net_link.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "common/keep.h"
#include "common/slices.h"

namespace ringreduce {

namespace {
size_t framed(size_t payload) { return sizeof(Packet) + round_up(payload, sizeof(uint64_t)); }
}  // namespace

NetLink::NetLink(Net* net, int world_rank, int tag) : net_(net), rank_(world_rank), tag_(tag), out_(kFrameBytes), in_(kFrameBytes) {}

NetLink::~NetLink() {
  if (receive_.active()) net_->cancel(&receive_);
  if (send_.active()) keep_for_good(std::make_shared<std::vector<char>>(std::move(out_)));  // still being read
}

Status NetLink::put(const Packet& packet, const char* payload, bool* taken) {
  if (send_.active()) RR_TRY(flush());
  *taken = !send_.active() && filled_ + framed(packet.payload) <= kFrameBytes;
  if (!*taken) return Status::ok();
  std::memcpy(out_.data() + filled_, &packet, sizeof packet);
  if (packet.payload) std::memcpy(out_.data() + filled_ + sizeof packet, payload, packet.payload);
  filled_ += framed(packet.payload);
  return Status::ok();
}

Status NetLink::flush() {
  if (send_.active()) {
    bool done = false;
    RR_TRY(net_->test(&send_, &done));
    if (done) filled_ = kHeader;
    return Status::ok();
  }
  if (filled_ == kHeader) return Status::ok();
  const uint64_t bytes = filled_;
  std::memcpy(out_.data(), &bytes, sizeof bytes);
  return net_->isend(rank_, tag_, out_.data(), filled_, &send_);
}

Status NetLink::damaged() const {
  return {Code::kPeerLost, "rank " + std::to_string(rank_) + " has sent a frame that cannot be: its memory or a message was damaged"};
}

Status NetLink::next(Packet* packet, bool* there) {
  *there = false;
  if (at_ == end_) {
    if (!receive_.active()) RR_TRY(net_->irecv(rank_, tag_, in_.data(), in_.size(), &receive_));
    bool arrived = false;
    RR_TRY(net_->test(&receive_, &arrived));
    if (!arrived) return Status::ok();
    uint64_t bytes;
    std::memcpy(&bytes, in_.data(), sizeof bytes);
    if (bytes <= kHeader || bytes > kFrameBytes) return damaged();
    at_ = kHeader;
    end_ = bytes;
  }
  if (end_ - at_ < sizeof *packet) return damaged();
  std::memcpy(static_cast<void*>(packet), in_.data() + at_, sizeof *packet);
  if (packet->type >= Packet::Type::kData || framed(packet->payload) > end_ - at_) return damaged();
  payload_ = packet->payload;
  *there = true;
  return Status::ok();
}

void NetLink::take(char* to) {
  if (to && payload_) std::memcpy(to, in_.data() + at_ + sizeof(Packet), payload_);
  at_ += framed(payload_);
}

// Both sides start the transfers of their pair in the order in which they were accepted.
Status NetLink::move(Message* message, bool* moved) {
  Request& transfer = message->transfer;
  if (!transfer.active()) {
    *moved = true;
    return message->is_send ? net_->isend(rank_, tag_ + 1, message->data, message->bytes, &transfer)
                            : net_->irecv(rank_, tag_ + 1, message->data, message->bytes, &transfer);
  }
  bool done = false;
  RR_TRY(net_->test(&transfer, &done));
  if (!done) return Status::ok();
  message->moved = message->bytes;
  *moved = true;
  return Status::ok();
}

}  // namespace ringreduce
