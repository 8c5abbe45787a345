// The engine's mutex. Two things that a std::mutex does not do:
//
// In turns. A thread that drives lets go of the mutex and takes it again at once. A std::mutex lets it,
// every time, before the thread that was woken for it has run: whoever wants to submit would not get in as
// long as there is something to drive. So those who wait are counted, and a driver stays out until one of
// them has been in.
//
//   submitter   Lock ──► (waits) ─────────────────► in
//   driver      in ──► unlock() ──► lock(): (stays out) ──► in
//
// Poisoned. If its holder throws (there is no memory, std::bad_alloc), what it was at may be half done.
// Then, before anybody else gets in, `poison` is called.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace ringreduce {

class Mutex {
 public:
  explicit Mutex(std::function<void()> poison) : poison_(std::move(poison)) {}

  class Lock {
   public:
    explicit Lock(Mutex& mutex) : mutex_(mutex), lock_(mutex.mutex_, std::defer_lock) { mutex_.take(lock_); }
    // For whoever can do without it: not longer than `patience`, and then owns_lock() is false.
    Lock(Mutex& mutex, std::chrono::milliseconds patience) : mutex_(mutex), lock_(mutex.mutex_, std::defer_lock) {
      mutex_.try_take(lock_, patience);
    }
    ~Lock() {
      if (std::uncaught_exceptions() == thrown_) return;
      if (!lock_.owns_lock()) lock_.lock();
      mutex_.poison_();
    }

    bool owns_lock() const { return lock_.owns_lock(); }
    std::unique_lock<std::mutex>& inner() { return lock_; }  // for a condition variable
    void unlock() { lock_.unlock(); }
    void lock() {  // again
      mutex_.give_way();
      mutex_.take(lock_);
    }

   private:
    Mutex& mutex_;
    std::unique_lock<std::mutex> lock_;
    const int thrown_ = std::uncaught_exceptions();
  };

 private:
  static constexpr int kYields = 100, kTries = 300;

  void take(std::unique_lock<std::mutex>& lock) {
    if (lock.try_lock()) return;
    waiting_.fetch_add(1, std::memory_order_relaxed);
    lock.lock();
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    served_.fetch_add(1, std::memory_order_relaxed);
  }

  // As one of those who wait, so that a driver stays out between two tries.
  void try_take(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds patience) {
    const auto end = std::chrono::steady_clock::now() + patience;
    if (lock.try_lock()) return;
    waiting_.fetch_add(1, std::memory_order_relaxed);
    while (!lock.try_lock() && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::microseconds(50));
    waiting_.fetch_sub(1, std::memory_order_relaxed);
    served_.fetch_add(1, std::memory_order_relaxed);
  }

  // Limited, as somebody who is stopped (by a debugger, say) must not stop the others.
  void give_way() const {
    const uint64_t before = served_.load(std::memory_order_relaxed);
    for (int i = 0; i < kTries && waiting_.load(std::memory_order_relaxed); ++i) {
      if (served_.load(std::memory_order_relaxed) != before) return;
      if (i < kYields) std::this_thread::yield();
      else std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

  const std::function<void()> poison_;
  std::mutex mutex_;
  std::atomic<int> waiting_{0};
  std::atomic<uint64_t> served_{0};  // who had to wait, ever
};

}  // namespace ringreduce
