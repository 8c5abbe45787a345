// What makes an engine go: whoever has something to wait for advances everything, and pauses when
// nothing moves; the background thread does so where nobody waits. And what may stop it: peers that
// die, and errors.
#include <algorithm>
#include <chrono>

#include <poll.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/pause.h"
#include "engine/engine.h"

namespace ringreduce {

namespace {

constexpr int64_t kPeerCheckNs = 100 * kMillisecond;
constexpr int kTurns = 64;
constexpr int64_t kNewsNs = 5 * kMillisecond;  // how often a leader looks whether a rank has left a plan
constexpr int64_t kPollNs = 300'000;  // between hosts: how long to poll without a pause
constexpr int64_t kGpuCheckNs = 50 * kMillisecond;  // while the GPU has work of ours
constexpr auto kGpuCheck = std::chrono::nanoseconds(kGpuCheckNs);

}  // namespace

Status Engine::advance(bool* moved) {
  try {
    return advance_all(moved);
  } catch (const std::exception& error) {
    return thrown(error);
  }
}

Status Engine::advance_all(bool* moved) {
  RR_TRY(hear());
  for (auto& [id, set] : sets_)
    if (!set->idle() || set->on_net()) RR_TRY(set->advance(moved));
  for (auto& plan : plans_)
    if (!plan->idle() && (plan->left().is_ok() || !plan->net())) RR_TRY(plan->advance(moved));  // else drain() does
  for (auto& plan : gpu_plans_)
    if (!plan->idle()) RR_TRY(plan->advance(moved));
  return draining_.empty() ? Status::ok() : drain(moved);
}

// Nothing rings when the GPU or NCCL get on.
bool Engine::gpu_polled() const {
  if (!device_) return false;
  return std::any_of(gpu_plans_.begin(), gpu_plans_.end(), [](const auto& plan) { return !plan->idle(); }) ||
         std::any_of(sets_.begin(), sets_.end(), [](const auto& set) { return set.second->on_net(); });
}

bool Engine::on_net() const {
  if (gpu_polled()) return true;
  if (!config_.net) return false;
  if (!draining_.empty()) return true;
  for (const auto& [id, set] : sets_)
    if (set->on_net()) return true;
  return std::any_of(plans_.begin(), plans_.end(), [](const auto& plan) { return plan->on_net(); });
}

// Buckets on one host are worked off in the hooks and at the end of backward: a background
// thread would only take the core from the computation, unless there are cores to spare.
bool Engine::background_work() const {
  for (const auto& [id, set] : sets_)
    if (!set->idle() || set->sending()) return true;
  if (gpu_polled()) return true;
  for (const auto& [channel, transfers] : draining_)  // peers that never come are not looked for for ever
    if (now_ns() - transfers.since_ns < to_ns(config_.settings.timeout_s)) return true;
  if (!config_.net && !config_.spare_cores) return false;
  return std::any_of(plans_.begin(), plans_.end(), [](const auto& plan) { return !plan->idle(); });
}

// Called when nothing moved, by somebody who waits for `done`.
void Engine::pause(Lock& lock, Idle* idle, int64_t most_ns, const std::function<bool()>& done) {
  const int64_t now = now_ns();
  if (!idle->since_ns) idle->since_ns = now;
  const int64_t idle_ns = now - idle->since_ns;
  const bool polling = on_net();
  if (polling && idle_ns < kPollNs) {
    lock.unlock();
    std::this_thread::yield();  // the message may come from a rank that waits for this core
    lock.lock();
    return;
  }
  if (!config_.oversubscribed && idle_ns < to_ns(config_.settings.spin_us * 1e-6)) {
    lock.unlock();
    for (int i = 0; i < 32; ++i) spin_pause();
    lock.lock();
    return;
  }
  // More ranks than cores: let the others run a few times before falling asleep. A yield is
  // cheaper than a sleep and a wake-up, but yielding on would keep them from running.
  if (config_.oversubscribed && idle->yields < kYields) {
    ++idle->yields;
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
    return;
  }
  const uint32_t ticket = bell_->ticket();
  bell_->enter();
  const bool awaiting_news = listening();
  if (awaiting_news) listen();
  bool moved = false;
  const Status status = advance(&moved);
  if (!status.is_ok()) fail(status);
  // A peer that has done its part before enter() has rung for nobody: look at the condition once more, too.
  if (!moved && status.is_ok() && !done()) {
    // Between hosts: pauses that grow with the time nothing has come.
    int64_t sleep_ns = most_ns;
    const int64_t longest = config_.oversubscribed ? kMillisecond : kMillisecond / 5;
    if (awaiting_news) sleep_ns = std::min(sleep_ns, kNewsNs);
    if (polling) sleep_ns = std::min(most_ns, std::clamp<int64_t>(idle_ns / 8, 50'000, longest));
    lock.unlock();
    bell_->sleep(ticket, sleep_ns);
    lock.lock();
  } else {
    *idle = {};
    if (drivers_ > 1) bell_->ring();
  }
  bell_->leave();
  if (now_ns() - peers_checked_ns_ < kPeerCheckNs) return;
  check_peers();
  check_gpu();
  for (auto& [id, set] : sets_) set->warn_of_stalls(now_ns(), to_ns(config_.settings.stall_warning_s));
}

Status Engine::wait_until(Lock& lock, const std::function<bool()>& done, double slice_s) {
  ++drivers_;
  try {
    drive(lock, done, slice_s);
  } catch (const std::exception& error) {
    fail(thrown(error));
  }
  if (!--drivers_) rouse();
  return broken_;
}

void Engine::drive(Lock& lock, const std::function<bool()>& done, double slice_s) {
  const int64_t end = now_ns() + to_ns(slice_s);
  Idle idle;
  for (int turn = 1; !done() && broken_.is_ok(); ++turn) {
    bool moved = false;
    const Status status = advance(&moved);
    if (!status.is_ok()) fail(status);
    if (moved) {
      idle = {};
      if (turn % kTurns == 0) {  // others want the engine, and the caller may have been interrupted
        if (now_ns() > end) break;
        lock.unlock();
        lock.lock();
      }
      if (drivers_ > 1) bell_->ring();  // it may be another thread's operation that has moved
      continue;
    }
    if (done()) break;
    const int64_t left = idle.since_ns ? end - now_ns() : to_ns(slice_s);
    if (left <= 0) break;
    pause(lock, &idle, left, done);
  }
}

// Nobody drives: the background thread has what is left, and whatever runs on the GPU to watch.
void Engine::rouse() {
  if (background_work() || (asleep_ && watching_gpu())) wake_.notify_one();
}

// The background thread.
void Engine::run() {
  Lock lock(mutex_);
  Idle idle;
  while (!closed_) {
    try {
      take_turn(lock, &idle);
    } catch (const std::exception& error) {
      fail(thrown(error));
      wake_.wait_for(lock.inner(), std::chrono::nanoseconds(kPeerCheckNs));  // it may happen again
    }
  }
}

void Engine::take_turn(Lock& lock, Idle* idle) {
  static const std::function<bool()> never = [] { return false; };
  if (device_.get() != current_) {
    current_ = device_.get();
    current_->make_current();
  }
  if (drivers_ || !background_work()) {
    *idle = {};
    asleep_ = !watching_gpu();
    if (asleep_) wake_.wait(lock.inner());
    else wake_.wait_for(lock.inner(), kGpuCheck);
    if (!asleep_ && now_ns() - peers_checked_ns_ >= kGpuCheckNs) {
      check_peers();
      check_gpu();
      listen();  // what runs on the GPU may wait for a rank that has left
    }
    asleep_ = false;
    return;
  }
  bool moved = false;
  const Status status = advance(&moved);
  if (!status.is_ok()) fail(status);
  if (moved) {
    *idle = {};
    if (drivers_) bell_->ring();
    // Whoever wants to submit or wait comes first.
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  } else {
    pause(lock, idle, kPeerCheckNs, never);
  }
}

void Engine::check_peers() {
  peers_checked_ns_ = now_ns();
  const std::vector<int>& locals = sets_[0]->topology().local_ranks();
  for (size_t i = 0; i < peer_fds_.size(); ++i) {
    pollfd peer{peer_fds_[i], POLLIN, 0};
    if (peer_fds_[i] < 0 || poll(&peer, 1, 0) <= 0) continue;
    ::close(peer_fds_[i]);
    peer_fds_[i] = -1;
    const std::vector<int> gone = sets_[0]->gone_ranks();
    const int rank = locals[i];
    if (std::find(gone.begin(), gone.end(), rank) != gone.end()) continue;  // it said goodbye
    fail({Code::kPeerLost, "rank " + std::to_string(rank) + " (process " + std::to_string(config_.peer_pids[i]) +
                               " on this host) has died"});
  }
}

void Engine::fail(const Status& status) {
  if (!broken_.is_ok()) return;
  broken_ = status;
  lost_transfers_ = config_.net && !closing_;
  // At a shutdown in order the idle ones are not aborted but destroyed: NCCL then sees to it that what
  // other ranks still get from this one arrives.
  try {
    std::vector<Communicator*> stuck = communicators();
    const auto idle = [&](const Communicator* one) { return status.code() == Code::kShutdown && !one->pending(); };
    stuck.erase(std::remove_if(stuck.begin(), stuck.end(), idle), stuck.end());
    Communicator::abort_all(stuck);
  } catch (const std::exception&) {
    // There is no memory for it: what is on the GPU stays there.
  }
  for (auto& [id, set] : sets_) set->fail(status);
  bell_->ring();
}

}  // namespace ringreduce
