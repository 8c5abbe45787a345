// Splits the communicator of a process set (the world) for a new set, which is cheaper than making
// one from nothing: NCCL knows the ranks already. All ranks of the parent take part, members of
// the new set or not, so it happens when the set is added, if the parent has a communicator then.
// Otherwise, and where that fails, the new set makes its own at its first operation.
//
//   parent's work on the GPU is finished ─► ncclCommSplit ─► settled? ─► all ranks compare
//
// If it failed on any rank, parent and child each make a new one at their next operation.
#pragma once

#include <memory>
#include <string>

#include "collectives/allgather.h"
#include "gpu/collective.h"

namespace ringreduce {

class Split : public Machine {
 public:
  // `child`: the new set's, null on a rank outside it.
  Split(GpuSet* parent, GpuSet* child) : parent_(parent), child_(child) {}

  Status advance(bool* moved) override;
  bool done() const override { return step_ == Step::kDone; }
  bool on_net() const override { return step_ == Step::kDraining || step_ == Step::kSettling || (exchange_ && exchange_->on_net()); }
  std::string where() const override { return "splitting a communicator of NCCL"; }

 private:
  enum class Step { kBegin, kDraining, kSettling, kOutcomes, kDone };

  void settle(const Status& status);
  void conclude();

  GpuSet* parent_;
  GpuSet* child_;
  Step step_ = Step::kBegin;
  std::shared_ptr<Communicator> made_;
  char ok_ = 1;
  Output outcomes_;
  std::unique_ptr<Allgather> exchange_;
};

}  // namespace ringreduce
