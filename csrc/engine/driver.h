// Who advances the engine, who pauses, who wakes whom. What there is to advance is Work, which the engine is.
//
// Whoever holds the engine's mutex may drive: a thread that waits for something drives until it is done; the
// background thread drives while there is work and nobody waits. Both let others have the mutex.
//
//   submit -> (nobody waits: wake the background thread)
//   wait   -> lock; while not done: advance everything; nothing moved: pause (unlocked)
//
// Pausing: spin a little where there is a core for every rank, then sleep on the bell of the host; where
// something is awaited that rings no bell (messages between hosts, the GPU), for a short time only.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <thread>

#include "common/clock.h"
#include "common/pause.h"
#include "engine/mutex.h"
#include "shm/bell.h"

namespace ringreduce {

// Called with the mutex held; none of it blocks.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool advance() = 0;                // does what can be done at once; whether that was anything
  virtual void broke(const std::exception& error) = 0;  // thrown by whoever drives
  virtual bool broken() const = 0;           // nothing will be advanced any more
  virtual bool polled() const = 0;           // something may come that rings no bell
  virtual bool flush() = 0;                  // what was sent may not have left; to be called every millisecond meanwhile
  virtual bool unattended() const = 0;       // to be advanced where nobody waits
  virtual bool watching() const = 0;         // something runs elsewhere (on the GPU), and is looked at now and then
  virtual bool listening() const = 0;        // news may come that rings no bell, and that concerns those who wait
  virtual void listen() = 0;
  virtual bool alarmed() const = 0;          // there is something to look at now
  virtual void look() = 0;                   // at what goes wrong in silence: who has died, what is late
  virtual void enter() = 0;                  // on the background thread, before it does anything
};

class Driver {
 public:
  using Lock = Mutex::Lock;
  Driver(Work* work, Mutex* mutex, Bell* bell, bool oversubscribed, double spin_us)
      : work_(*work), mutex_(*mutex), bell_(bell), oversubscribed_(oversubscribed), spin_ns_(to_ns(spin_us * 1e-6)) {}
  void start();                              // the background thread
  void stop(Lock& lock);                     // and sees out all who wait; the work is broken

  // Drives until `done`, for at most `slice_s`, or until the work is broken.
  void wait_until(Lock& lock, const std::function<bool()>& done, double slice_s);
  bool driven() const { return waiting_ > 0; }
  // There is something to do that those who drive may not have seen, or the background thread may sleep through.
  void rouse();
  // The same where it is known that there is.
  void wake() {
    if (!waiting_) wake_.notify_one();
  }
  // As long as a pause spins or yields before it sleeps; with the mutex held, so for those only whom nobody waits for.
  template <typename Done>
  void linger(Done done) const {
    for (int i = 0; oversubscribed_ && i < kYields && !done(); ++i) std::this_thread::yield();
    if (oversubscribed_ || done()) return;
    const int64_t end = now_ns() + spin_ns_;
    do {
      for (int i = 0; i < 64 && !done(); ++i) spin_pause();
    } while (!done() && now_ns() < end);
  }

 private:
  struct Idle {  // since something last moved
    int64_t since_ns = 0;
    int yields = 0;
  };
  static constexpr int kYields = 8;

  void drive(Lock& lock, const std::function<bool()>& done, double slice_s);
  void pause(Lock& lock, Idle* idle, int64_t most_ns, const std::function<bool()>& done);
  bool spin(Lock& lock, Idle* idle, int64_t idle_ns, bool polled);
  void look(int64_t period_ns);
  void run();
  void take_turn(Lock& lock, Idle* idle);
  void sleep(Lock& lock);

  Work& work_;
  Mutex& mutex_;
  Bell* const bell_;
  const bool oversubscribed_;
  const int64_t spin_ns_;
  std::condition_variable wake_;  // the background thread, where there is no work for it
  int waiting_ = 0;               // threads that drive until something is done
  bool asleep_ = false;           // the background thread, for no limited time
  bool stopped_ = false;
  int64_t looked_ns_ = 0;
  std::thread thread_;
};

}  // namespace ringreduce
