// Who has died, who has gone, who is late: each an answer that names the rank, or ok. None of it acts on what it
// finds. Every cause of a failure goes to Engine::fail, and the first one wins.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan.h"
#include "engine/death_watch.h"
#include "engine/process_set.h"

namespace ringreduce {

class Liveness {
 public:
  // `pids`: of the host's ranks, by local index; empty: unknown. `alarm`: called on another thread when one has ended.
  Liveness(const std::vector<int>& pids, double timeout_s, std::function<void()> alarm);
  void stop();

  // A process of this host has ended since deaths() was asked.
  bool alarmed() const { return watch_->news(); }
  // A process of this host has ended, and did not say goodbye.
  Status deaths(const ProcessSet& world);
  // The time for an operation of the set is over at `limit_ns`.
  int64_t limit_ns(double timeout_s, int64_t since_ns) const;
  Status late(const Op& op, int64_t limit_ns, ProcessSet* set) const;
  Status late(const Message& message, int64_t limit_ns, ProcessSet* set) const;
  // A bucket that is not complete will not be, for the reason given or as a rank has shut down, or has taken too long.
  // `world` is null once the engine has closed. The time counts from its launch; after a time-out from `since_ns`, when the caller began to wait again.
  Status late(const Plan& plan, int bucket, int64_t since_ns, Status why, ProcessSet* world);

 private:
  Status farewell(const Plan& plan, ProcessSet& world) const;

  const int64_t timeout_ns_;
  const std::vector<int> pids_;
  std::vector<int> fds_;             // pidfds; -1: none
  std::vector<bool> ended_;
  std::unique_ptr<DeathWatch> watch_;
  int64_t bucket_timed_out_ns_ = 0;  // last
};

}  // namespace ringreduce
