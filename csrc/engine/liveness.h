// Who is lost, who has gone, who is late: each an answer that names the rank, or ok. None of it acts on what it
// finds. Every cause of a failure goes to Engine::fail, and the first one wins, on this rank and among all (Watch).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan.h"
#include "engine/config.h"
#include "engine/process_set.h"
#include "liveness/watch.h"

namespace ringreduce {

class Liveness {
 public:
  // `alarm`: called on another thread when there is a verdict.
  Liveness(const EngineConfig& config, const ProcessSet& world, std::function<void()> alarm);
  void stop() { watch_.stop(); }

  // A rank is lost: the same text on all ranks.
  bool alarmed() const { return watch_.decided(); }
  Status verdict() const { return watch_.verdict(); }
  bool lost_process() const { return watch_.lost_process(); }
  // This rank cannot go on. What it is to raise: a certain cause, or the one that it followed from.
  Status failed(const Status& status, bool is_certain) { return watch_.failed(status, is_certain); }
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
  Watch watch_;
  int64_t bucket_timed_out_ns_ = 0;  // last
};

}  // namespace ringreduce
