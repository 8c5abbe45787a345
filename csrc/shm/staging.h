// The in-host channel of one process set: an endless sequence of steps over a few staging
// slots in shared memory. In one step each local rank stages up to one chunk, all see it, and
// the slot is used again K steps later. Consecutive operations simply take consecutive steps,
// so one may begin while the previous one still drains elsewhere.
//
//   step t, slot t % K:   fill   a rank has staged its part    -> filled(t): all have
//                         settle a rank has reduced its slice  -> settled(t): all have
//                         drain  a rank needs the slot no more -> vacant(t + K): all have
//
// Each is one counter that only grows; the step is complete at (t / K + 1) * local_size, and
// whoever completes it rings the bell of the host. Counters, not flags, because a single
// arrival then wakes everybody with a single system call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "common/slices.h"
#include "shm/bell.h"

namespace ringreduce {

struct alignas(kLine) Counter {
  std::atomic<uint64_t> value{0};
};

// In shared memory.
struct StagingState {
  static constexpr int kSlots = 4;
  Counter filled[kSlots], settled[kSlots], drained[kSlots];
  std::atomic<uint32_t> broken_off{0};
  std::atomic<uint64_t> refused[kSlots]{};  // step + 1
};

class Staging {
  static constexpr size_t kCachedBytes = 8 << 20;

 public:
  static constexpr int kSlots = StagingState::kSlots;
  static size_t staging_bytes(int local_size, size_t chunk) { return kSlots * local_size * chunk; }

  Staging() = default;
  // `small_chunk`: what a step of an operation that the caches hold stages, at most.
  Staging(StagingState* state, char* staging, int local_size, size_t chunk, size_t small_chunk, Bell* bell)
      : state_(state), staging_(staging), size_(local_size), chunk_(chunk), small_chunk_(std::min(chunk, small_chunk)), bell_(bell) {}

  size_t chunk() const { return chunk_; }  // bytes of one rank's slot
  // What a rank stages in a step of an operation on so many bytes.
  size_t chunk(size_t bytes) const { return bytes < kCachedBytes ? small_chunk_ : chunk_; }
  uint64_t reserve(uint64_t steps) { return next_ += steps, next_ - steps; }

  char* slot(uint64_t step, int local) const {
    return staging_ + (step % kSlots * size_ + local) * chunk_;
  }

  // `weight`: for how many ranks this arrival stands; the weights of a step sum to local_size.
  void fill(uint64_t step, int weight = 1) { arrive(state_->filled[step % kSlots], step, weight); }
  void settle(uint64_t step, int weight = 1) { arrive(state_->settled[step % kSlots], step, weight); }
  void drain(uint64_t step) { arrive(state_->drained[step % kSlots], step, 1); }

  // drain() of a step that nobody settles: its counter must not fall behind.
  void drain_unsettled(uint64_t step) {
    state_->settled[step % kSlots].value.fetch_add(1, std::memory_order_relaxed);
    drain(step);
  }

  bool filled(uint64_t step) const { return complete(state_->filled[step % kSlots], step / kSlots + 1); }
  bool settled(uint64_t step) const { return complete(state_->settled[step % kSlots], step / kSlots + 1); }
  bool vacant(uint64_t step) const { return complete(state_->drained[step % kSlots], step / kSlots); }
  bool drained(uint64_t step) const { return complete(state_->drained[step % kSlots], step / kSlots + 1); }

  // A rank gives an operation up, and its memory back to the program: what others have read of it since counts
  // for nothing. Whoever looks after having read knows.
  void break_off() { state_->broken_off.store(1, std::memory_order_seq_cst); }
  bool broken_off() const { return state_->broken_off.load(std::memory_order_seq_cst); }

  // In a step, before this rank's last arrival: it has not got what it was to read of others. All know once all have arrived.
  void refuse(uint64_t step) { state_->refused[step % kSlots].store(step + 1, std::memory_order_release); }
  bool refused(uint64_t step) const { return state_->refused[step % kSlots].load(std::memory_order_acquire) == step + 1; }

 private:
  void arrive(Counter& counter, uint64_t step, int weight) {
    if (!weight) return;
    const uint64_t now = counter.value.fetch_add(weight, std::memory_order_acq_rel) + weight;
    if (now == (step / kSlots + 1) * size_) bell_->ring();
  }
  bool complete(const Counter& counter, uint64_t rounds) const {
    return counter.value.load(std::memory_order_acquire) >= rounds * size_;
  }

  StagingState* state_ = nullptr;
  char* staging_ = nullptr;
  uint64_t size_ = 1;
  size_t chunk_ = 0, small_chunk_ = 0;
  Bell* bell_ = nullptr;
  uint64_t next_ = 0;
};

}  // namespace ringreduce
