// The end of an engine: what has been agreed on is finished, all else failed.
#include <algorithm>

#include "common/keep.h"
#include "engine/engine.h"

namespace ringreduce {

constexpr double kFarewellS = 1.5;
constexpr double kDestroyS = 2;

void Engine::close(double timeout_s, const std::string& why) {
  Lock lock(mutex_);
  if (closed_) return;
  closing_ = true;
  status_.state(RankState::kClosing, why);
  finish(lock, timeout_s, why);
  const bool unfinished = config_.net && (sets_.committed() || plans_.committed());  // by peers that are late, or gone
  fail({Code::kShutdown, "ringreduce was shut down on this rank while the operation was in flight"});
  closed_ = true;
  status_.state(RankState::kGone);
  drop_kept_results();
  driver_.stop(lock);
  liveness_.stop();
  plans_.abandon(lost_transfers_);
  if (unfinished || lost_transfers_) sets_.keep_for_good();
  if (lost_transfers_) keep_for_good(std::shared_ptr<Net>(std::move(config_.net)));
  gpu_.clear();
  plans_.clear();
  sets_.clear();
  lock.unlock();
  Communicator::wait_for_ended(kDestroyS);  // the other ranks shut down, too, but some may not
  lock.lock();
  config_.net.reset();  // its receives are taken back while the communicator lives
}

// The peers count on what has been agreed. Farewells may wait for a peer that no longer receives, so they get
// little time. What is on the GPU is finished there: a communicator is destroyed without loss, or aborted.
void Engine::finish(Lock& lock, double timeout_s, const std::string& why) {
  // A rank that failed says no goodbye: its death is then noticed as one.
  const Status status = broken() ? Status::ok() : sets_.say_gone(why);
  if (!status.is_ok()) fail(status);
  driver_.wait_until(lock, [&] { return !sets_.committed() && !plans_.committed(); }, timeout_s);
  driver_.wait_until(lock, [&] { return !sets_.sending() && !plans_.draining(); }, std::min(timeout_s, kFarewellS));
  driver_.wait_until(lock, [&] { return check_gpu(), !gpu_.pending(); }, timeout_s);
}

}  // namespace ringreduce
