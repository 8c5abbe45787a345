#include "engine/driver.h"

#include <algorithm>
#include <chrono>

namespace ringreduce {

namespace {

constexpr int64_t kFlushEveryNs = kMillisecond;
constexpr int64_t kLookNs = 100 * kMillisecond;
constexpr int64_t kWatchNs = 50 * kMillisecond;  // while something of ours runs elsewhere
constexpr int kTurns = 64;
constexpr int64_t kNewsNs = 5 * kMillisecond;    // how often whoever waits listens
constexpr int64_t kPollNs = 300'000;             // how long to poll without a pause

}  // namespace

void Driver::start() {
  thread_ = std::thread([this] { run(); });
}

void Driver::stop(Lock& lock) {
  stopped_ = true;
  wake_.notify_all();
  bell_->ring();
  lock.unlock();
  thread_.join();
  lock.lock();
  while (waiting_) {
    bell_->ring();
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
}

void Driver::rouse() {
  if (waiting_) bell_->ring();
  else if (work_.unattended() || (asleep_ && (work_.watching() || work_.flush()))) wake_.notify_one();
}

void Driver::wait_until(Lock& lock, const std::function<bool()>& done, double slice_s) {
  ++waiting_;
  try {
    drive(lock, done, slice_s);
  } catch (const std::exception& error) {
    work_.broke(error);
  }
  if (!--waiting_) rouse();  // the background thread has what is left
}

void Driver::drive(Lock& lock, const std::function<bool()>& done, double slice_s) {
  const int64_t end = now_ns() + to_ns(slice_s);
  Idle idle;
  for (int turn = 1; !done() && !work_.broken(); ++turn) {
    if (work_.advance()) {
      idle = {};
      if (turn % kTurns == 0) {  // others want the engine, and the caller may have been interrupted
        if (now_ns() > end) break;
        lock.unlock();
        lock.lock();
      }
      if (waiting_ > 1) bell_->ring();  // it may be another thread's operation that has moved
      continue;
    }
    if (done()) break;
    const int64_t left = idle.since_ns ? end - now_ns() : to_ns(slice_s);
    if (left <= 0) break;
    pause(lock, &idle, left, done);
  }
}

// Without falling asleep; false when there has been enough of it.
bool Driver::spin(Lock& lock, Idle* idle, int64_t idle_ns, bool polled) {
  // A message may come from a rank that waits for this core. More ranks than cores: let the others run a few times
  // before falling asleep. A yield is cheaper than a sleep and a wake-up, but yielding on would keep them from running.
  const bool polling = polled && idle_ns < kPollNs;
  const bool spinning = !oversubscribed_ && idle_ns < spin_ns_;
  if (!polling && !spinning && (!oversubscribed_ || idle->yields >= kYields)) return false;
  lock.unlock();
  if (polling) {
    std::this_thread::yield();
  } else if (spinning) {
    for (int i = 0; i < 32; ++i) spin_pause();
  } else {
    ++idle->yields;
    std::this_thread::yield();
  }
  lock.lock();
  return true;
}

// Called when nothing moved, by somebody who waits for `done`.
void Driver::pause(Lock& lock, Idle* idle, int64_t most_ns, const std::function<bool()>& done) {
  const int64_t now = now_ns();
  if (!idle->since_ns) idle->since_ns = now;
  const int64_t idle_ns = now - idle->since_ns;
  const bool polled = work_.polled();
  if (spin(lock, idle, idle_ns, polled)) return;
  const uint32_t ticket = bell_->ticket();
  bell_->enter();
  const bool listening = work_.listening();
  if (listening) work_.listen();
  // A peer that has done its part before enter() has rung for nobody: look at the condition once more, too.
  if (!work_.advance() && !work_.broken() && !work_.alarmed() && !done()) {
    // Pauses that grow with the time nothing has come.
    const int64_t longest = oversubscribed_ ? kMillisecond : kMillisecond / 5;
    if (listening) most_ns = std::min(most_ns, kNewsNs);
    if (!polled && work_.flush()) most_ns = std::min(most_ns, kFlushEveryNs);
    if (polled) most_ns = std::min(most_ns, std::clamp<int64_t>(idle_ns / 8, 50'000, longest));
    lock.unlock();
    bell_->sleep(ticket, most_ns);
    lock.lock();
  } else {
    *idle = {};
    if (waiting_ > 1) bell_->ring();
  }
  bell_->leave();
  look(kLookNs);
}

void Driver::look(int64_t period_ns) {
  if (!work_.alarmed() && now_ns() - looked_ns_ < period_ns) return;
  looked_ns_ = now_ns();
  work_.look();
}

void Driver::run() {
  Lock lock(mutex_);
  Idle idle;
  while (!stopped_) {
    try {
      take_turn(lock, &idle);
    } catch (const std::exception& error) {
      work_.broke(error);
      wake_.wait_for(lock.inner(), std::chrono::nanoseconds(kLookNs));  // it may happen again
    }
  }
}

void Driver::take_turn(Lock& lock, Idle* idle) {
  static const std::function<bool()> never = [] { return false; };
  work_.enter();
  if (waiting_ || !work_.unattended()) {
    *idle = {};
    sleep(lock);
  } else if (work_.advance()) {
    *idle = {};
    if (waiting_) bell_->ring();
    // Whoever wants to submit or wait comes first.
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  } else {
    pause(lock, idle, kLookNs, never);
  }
}

// There is no work, or others do it.
void Driver::sleep(Lock& lock) {
  if (!waiting_ && work_.flush()) {
    wake_.wait_for(lock.inner(), std::chrono::nanoseconds(kFlushEveryNs));
    return;
  }
  asleep_ = !work_.watching();
  if (asleep_) {
    wake_.wait(lock.inner());
    asleep_ = false;
    return;
  }
  wake_.wait_for(lock.inner(), std::chrono::nanoseconds(kWatchNs));
  look(kWatchNs);
  work_.listen();  // what runs elsewhere may wait for a rank that has left
}

}  // namespace ringreduce
