// A link within a host: a ring of packets in shared memory for each ordered pair of ranks, with one writer and one
// reader. What has changed for a rank, it learns from one counter: it need not look at all rings.
//
//   MailState   news of rank 0 | 1 | ...      pair [to][from]: tail | head, starved
//   rings       [to][from], each reserved when it is first written to
//
//   writer                                  reader
//     packets behind tail, tail forward       packets before head, head forward
//     news of the reader + 1, ring            was the writer starved? news of the writer + 1, ring
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "common/slices.h"
#include "mailbox/link.h"
#include "shm/bell.h"
#include "shm/segment.h"

namespace ringreduce {

// Bytes ever written and read.
struct RingState {
  alignas(kLine) std::atomic<uint64_t> tail{0};
  alignas(kLine) std::atomic<uint64_t> head{0};
  std::atomic<uint32_t> starved{0};  // the writer waits for room
};

// The mailboxes of the ranks of a host, in the memory of their process set.
class MailMemory {
 public:
  static size_t state_bytes(int local_size);
  static size_t ring_bytes(int local_size);  // of one; a power of two
  static size_t rings_bytes(int local_size) { return ring_bytes(local_size) * local_size * local_size; }

  // `state`, `rings`: offsets in the segment.
  MailMemory(std::shared_ptr<Segment> segment, size_t state, size_t rings, int local_size, int local, Bell* bell);

  int local() const { return local_; }
  size_t capacity() const { return ring_bytes(size_); }
  RingState& pair(int to, int from) const;
  char* ring(int to, int from) const { return segment_->data() + rings_ + index(to, from) * capacity(); }
  Status reserve(int to, int from) const { return segment_->reserve(rings_ + index(to, from) * capacity(), capacity()); }

  uint64_t news() const { return news_of(local_).load(std::memory_order_acquire); }
  void tell(int local) const {
    news_of(local).fetch_add(1, std::memory_order_release);
    bell_->ring();
  }

 private:
  size_t index(int to, int from) const { return static_cast<size_t>(to) * size_ + from; }
  std::atomic<uint64_t>& news_of(int local) const;

  std::shared_ptr<Segment> segment_;
  size_t state_, rings_;
  int size_, local_;
  Bell* bell_;
};

class HostLink final : public Link {
 public:
  // `other`: local index; this rank's own, too.
  HostLink(const MailMemory* memory, int other, int world_rank);

  // Before the first send to it: memory for both directions, as what is sent may be answered.
  Status reserve();

  Status put(const Packet& packet, const char* payload, bool* taken) override;
  Status flush() override;
  bool sending() const override { return false; }
  Status next(Packet* packet, bool* there) override;
  void take(char* to) override;
  void settle() override;
  Status move(Message* message, bool* moved) override;

 private:
  bool room(size_t bytes);
  void write(uint64_t at, const void* from, size_t bytes);
  void read(uint64_t at, void* to, size_t bytes) const;
  Status damaged() const;

  const MailMemory& memory_;
  const int other_, world_rank_;
  RingState &out_, &in_;
  char *const out_ring_, *const in_ring_;
  const size_t capacity_;
  size_t payload_ = 0;      // of the packet that next() has shown
  bool reserved_ = false, told_ = true, settled_ = true;
};

}  // namespace ringreduce
