// A lock in shared memory, held for a few hundred nanoseconds at a time. A holder that is
// killed leaves it held: lock() then gives up at its deadline and says who held it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

#include "common/clock.h"
#include "common/pause.h"
#include "common/status.h"
#include "shm/bell.h"

namespace ringreduce {

class ShmLock {
 public:
  // `rank`: of the caller, for the message when its holder is gone.
  Status lock(int rank) {
    for (int i = 0; i < kTries; ++i) {
      if (try_lock(rank)) return Status::ok();
      if (i < kSpins) spin_pause();
      else std::this_thread::yield();  // the holder may be waiting for this core
    }
    const int64_t deadline = now_ns() + kDeadlineNs;
    while (now_ns() < deadline) {
      const uint32_t ticket = released_.ticket();
      released_.enter();
      const bool mine = try_lock(rank);
      if (!mine) released_.sleep(ticket, kRetryNs);
      released_.leave();
      if (mine) return Status::ok();
    }
    return {Code::kPeerLost, "rank " + std::to_string(holder_.load() - 1) + " of this host holds the operation table "
                             "and does not let go; it was probably killed"};
  }

  void unlock() {
    holder_.store(0, std::memory_order_release);
    released_.ring();
  }

  // Lets go of a lock at the end of its scope, also where memory runs out before.
  class Held {
   public:
    explicit Held(ShmLock& lock) : lock_(lock) {}
    ~Held() { lock_.unlock(); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

   private:
    ShmLock& lock_;
  };

 private:
  static constexpr int kSpins = 30, kTries = 60;
  static constexpr int64_t kDeadlineNs = 10'000'000'000, kRetryNs = 10'000'000;

  bool try_lock(int rank) {
    uint32_t nobody = 0;
    return holder_.load(std::memory_order_relaxed) == 0 &&
           holder_.compare_exchange_strong(nobody, rank + 1, std::memory_order_acquire);
  }

  std::atomic<uint32_t> holder_{0};  // local index + 1
  Bell released_;
};

}  // namespace ringreduce
