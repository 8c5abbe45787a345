// Messages between hosts of gradient plans that are over on this rank, because they were left or closed. Others may
// still send some: until none can come any more (buckets/plan_net.h), a plan keeps its tags and its memory.
#pragma once

#include <map>
#include <memory>

#include "agreement/departures.h"
#include "buckets/plan.h"
#include "buckets/plan_net.h"

namespace ringreduce {

class Transfers {
 public:
  bool empty() const { return draining_.empty(); }
  void take_used(PlanChannel::Offer* offer) const;  // whose tags they have
  bool awaited(int64_t timeout_ns) const;           // peers that never come are not looked for for ever

  void left(const std::shared_ptr<Plan>& plan);     // others may send what is left of the step
  // Closed. In the middle of its messages (`busy`): nobody drives them any more. Else others may still be in the step,
  // and leave it.
  void closed(const std::shared_ptr<Plan>& plan, bool busy);
  // Of a closed plan; whether it is one.
  Status hear(const Departure& departure, bool* known);
  Status advance(bool* moved);
  // At the very end: MPI may go on reading, and writing what it cannot take back. After a loss it is not called again.
  void abandon(bool lost);

 private:
  struct Draining {
    std::shared_ptr<PlanNet> net;
    std::shared_ptr<Plan> plan;                     // whose memory they read and write; null: no more
    int64_t since_ns;
  };
  std::map<int64_t, Draining> draining_;            // by channel
  std::map<int64_t, std::shared_ptr<PlanNet>> ended_;
};

}  // namespace ringreduce
