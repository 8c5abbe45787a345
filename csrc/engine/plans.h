// The gradient plans of this rank: which there are, who advances them, and how a rank leaves one in the middle of a
// step and hears of others that do (agreement/departures.h).
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan.h"
#include "engine/sets.h"
#include "engine/transfers.h"

namespace ringreduce {

class Plans {
 public:
  explicit Plans(Sets* sets) : sets_(*sets) {}

  // This rank's part in agreeing on the channel of a new plan.
  std::string offer() const;
  Status add(std::shared_ptr<Plan> plan);  // it may have been left already, by a rank that was quicker
  // `broken`: nothing is driven any more, so parts of what has failed may be on their way.
  void remove(const std::shared_ptr<Plan>& plan, bool broken);

  Status advance(bool* moved);
  bool polled() const { return !transfers_.empty() || any([](const Plan& plan) { return plan.polled(); }); }
  bool committed() const { return any([](const Plan& plan) { return plan.committed(); }); }
  bool busy() const { return any([](const Plan& plan) { return !plan.idle(); }); }
  // Where nobody waits; `arenas`: those of the CPU, too.
  bool unattended(bool arenas, int64_t timeout_ns) const {
    return transfers_.awaited(timeout_ns) || any([arenas](const Plan& plan) { return !plan.idle() && (arenas || plan.on_gpu()); });
  }
  bool draining() const { return !transfers_.empty(); }
  std::string state() const;

  // Says that `rank` leaves the plan, unless there is no such plan, or the others know that they get no more of it;
  // whether that was said.
  Status leave(const PlanId& plan, int rank, const std::string& why, bool* said);
  Status hear(bool* news);

  // At the very end. `lost`: messages were in flight when the engine broke, and MPI may still write into their memory.
  void abandon(bool lost);
  void clear() { plans_.clear(); }

 private:
  Status hear(const Departure& departure);
  template <typename Test>
  bool any(Test test) const {
    return std::any_of(plans_.begin(), plans_.end(), [&test](const auto& plan) { return test(*plan); });
  }

  Sets& sets_;
  std::vector<std::shared_ptr<Plan>> plans_;  // of one channel: a GPU's and the arena that it goes through
  Transfers transfers_;
  std::map<int64_t, Departure> unclaimed_;    // by channel, of plans that this rank has not made yet
  int64_t last_serial_ = 0;
};

}  // namespace ringreduce
