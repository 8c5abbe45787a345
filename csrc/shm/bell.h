// The bell of one host: one futex word on which every idle rank of the host sleeps. Whoever
// completes something that a sleeper may wait for rings it. One word for all, because one
// wake of N sleepers is one system call (16 ranks on 2 cores: 40 us for a 4-byte allreduce,
// against 345 us for Open MPI).
//
//   sleeper                          ringer
//     ticket = bell.ticket()           publish what changed
//     bell.enter()                     bell.ring()
//     look again for something to do     (fence; no sleeper: nothing more to do)
//     bell.sleep(ticket, timeout)
//     bell.leave()
//
// The two fences (in enter and in ring) make it impossible that the sleeper misses the change
// and the ringer misses the sleeper (Dekker's argument).
#pragma once

#include <atomic>
#include <cstdint>

namespace ringreduce {

class alignas(64) Bell {
 public:
  uint32_t ticket() const { return sequence_.load(std::memory_order_acquire); }
  void enter() {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    full_fence();
  }
  void leave() { sleepers_.fetch_sub(1, std::memory_order_seq_cst); }
  void ring();                                        // wakes every sleeper
  void sleep(uint32_t ticket, int64_t timeout_ns);    // returns early at a ring or a signal

 private:
  static void full_fence() {
#ifndef __SANITIZE_THREAD__
    std::atomic_thread_fence(std::memory_order_seq_cst);
#else
    // ThreadSanitizer does not know fences (g++ warns); a read-modify-write is one on x86.
    static std::atomic<int> word{0};
    word.fetch_add(0, std::memory_order_seq_cst);
#endif
  }

  std::atomic<uint32_t> sequence_{0};
  std::atomic<uint32_t> sleepers_{0};
};

}  // namespace ringreduce
