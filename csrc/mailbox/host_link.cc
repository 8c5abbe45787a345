#include "mailbox/host_link.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace ringreduce {

namespace {

// All rings of a rank together are as large as its staging slots; the largest packets are a quarter of a ring.
constexpr size_t kOfRank = 1 << 20, kLeast = 16 << 10, kMost = 128 << 10;
constexpr int kPackets = 4;

struct alignas(kLine) News {
  std::atomic<uint64_t> count{0};
};

size_t packed(size_t payload) { return sizeof(Packet) + round_up(payload, sizeof(Packet)); }

}  // namespace

size_t MailMemory::state_bytes(int local_size) {
  return sizeof(News) * local_size + sizeof(RingState) * local_size * local_size;
}

size_t MailMemory::ring_bytes(int local_size) {
  size_t bytes = kMost;
  while (bytes > kLeast && bytes * local_size > kOfRank) bytes /= 2;
  return bytes;
}
static_assert(kLeast / kPackets >= Packet::kWholeBytes, "a small message fits into a quarter of a ring");

MailMemory::MailMemory(std::shared_ptr<Segment> segment, size_t state, size_t rings, int local_size, int local, Bell* bell)
    : segment_(std::move(segment)), state_(state), rings_(rings), size_(local_size), local_(local), bell_(bell) {}

std::atomic<uint64_t>& MailMemory::news_of(int local) const {
  return reinterpret_cast<News*>(segment_->data() + state_)[local].count;
}

RingState& MailMemory::pair(int to, int from) const {
  return reinterpret_cast<RingState*>(segment_->data() + state_ + sizeof(News) * size_)[index(to, from)];
}

HostLink::HostLink(const MailMemory* memory, int other, int world_rank)
    : memory_(*memory),
      other_(other),
      world_rank_(world_rank),
      out_(memory->pair(other, memory->local())),
      in_(memory->pair(memory->local(), other)),
      out_ring_(memory->ring(other, memory->local())),
      in_ring_(memory->ring(memory->local(), other)),
      capacity_(memory->capacity()) {}

Status HostLink::reserve() {
  if (reserved_) return Status::ok();
  RR_TRY(memory_.reserve(other_, memory_.local()));
  RR_TRY(memory_.reserve(memory_.local(), other_));
  reserved_ = true;
  return Status::ok();
}

void HostLink::write(uint64_t at, const void* from, size_t bytes) {
  const size_t begin = at & (capacity_ - 1), first = std::min(bytes, capacity_ - begin);
  std::memcpy(out_ring_ + begin, from, first);
  if (first < bytes) std::memcpy(out_ring_, static_cast<const char*>(from) + first, bytes - first);
}

void HostLink::read(uint64_t at, void* to, size_t bytes) const {
  const size_t begin = at & (capacity_ - 1), first = std::min(bytes, capacity_ - begin);
  std::memcpy(to, in_ring_ + begin, first);
  if (first < bytes) std::memcpy(static_cast<char*>(to) + first, in_ring_, bytes - first);
}

// Either the reader sees that its writer is starved, or the writer sees the room that the reader has made: the
// exchanges have one order, and whatever came before the first is seen after the second.
bool HostLink::room(size_t bytes) {
  const uint64_t tail = out_.tail.load(std::memory_order_relaxed);
  const auto fits = [&] { return tail + bytes - out_.head.load(std::memory_order_acquire) <= capacity_; };
  if (fits()) return true;
  out_.starved.exchange(1, std::memory_order_seq_cst);
  return fits();
}

Status HostLink::put(const Packet& packet, const char* payload, bool* taken) {
  *taken = room(packed(packet.payload));
  if (!*taken) return Status::ok();
  const uint64_t tail = out_.tail.load(std::memory_order_relaxed);
  write(tail, &packet, sizeof packet);
  if (packet.payload) write(tail + sizeof packet, payload, packet.payload);
  out_.tail.store(tail + packed(packet.payload), std::memory_order_release);
  told_ = false;
  return Status::ok();
}

Status HostLink::flush() {
  if (!told_) memory_.tell(other_);
  told_ = true;
  return Status::ok();
}

Status HostLink::damaged() const {
  return {Code::kPeerLost, "the mailbox for rank " + std::to_string(world_rank_) +
                               " in the host's memory is damaged; a rank of this host has written over it"};
}

Status HostLink::next(Packet* packet, bool* there) {
  const uint64_t head = in_.head.load(std::memory_order_relaxed);
  const uint64_t held = in_.tail.load(std::memory_order_acquire) - head;
  *there = held > 0;
  if (!*there) return Status::ok();
  if (held > capacity_ || held < sizeof *packet) return damaged();
  read(head, packet, sizeof *packet);
  if (packet->type > Packet::Type::kData || packed(packet->payload) > held) return damaged();
  payload_ = packet->payload;
  return Status::ok();
}

void HostLink::take(char* to) {
  const uint64_t head = in_.head.load(std::memory_order_relaxed);
  if (to && payload_) read(head + sizeof(Packet), to, payload_);
  in_.head.store(head + packed(payload_), std::memory_order_release);
  settled_ = false;
}

void HostLink::settle() {
  if (!settled_ && in_.starved.exchange(0, std::memory_order_seq_cst)) memory_.tell(other_);
  settled_ = true;
}

Status HostLink::move(Message* message, bool* moved) {
  if (!message->is_send) return Status::ok();  // it comes in packets
  const size_t most = capacity_ / kPackets - sizeof(Packet);
  while (message->moved < message->bytes) {
    Packet packet;
    packet.type = Packet::Type::kData;
    packet.number = message->number;
    packet.payload = static_cast<uint32_t>(std::min(most, message->bytes - message->moved));
    bool taken = false;
    RR_TRY(put(packet, message->data + message->moved, &taken));
    if (!taken) break;
    message->moved += packet.payload;
    *moved = true;
    RR_TRY(flush());  // its receiver reads this packet while the next one is written
  }
  return Status::ok();
}

}  // namespace ringreduce
