#include "gpu/split.h"

#include <algorithm>

#include "common/log.h"

namespace ringreduce {

Status Split::advance(bool* moved) {
  switch (step_) {
    case Step::kBegin: {
      // Operations run in the same order everywhere: all ranks see the same here.
      const bool possible = parent_->communicator && parent_->communicator->can_split() && parent_->path == GpuPath::kNccl;
      step_ = possible ? Step::kDraining : Step::kDone;
      *moved = true;
      return Status::ok();
    }
    case Step::kDraining: {
      // The deadline is the watch's of the engine.
      RR_TRY(parent_->communicator->check(INT64_MAX));
      if (parent_->communicator->pending()) return Status::ok();
      *moved = true;
      const Status status = parent_->communicator->split(child_ ? child_->channel->topology : nullptr, &made_);
      if (!status.is_ok()) return settle(status), Status::ok();
      step_ = Step::kSettling;
      return Status::ok();
    }
    case Step::kSettling: {
      bool parent_settled = false, settled = true;
      Status status = parent_->communicator->settled(&parent_settled);
      // Before that the child does not exist.
      if (status.is_ok() && parent_settled && child_) status = made_->settled(&settled);
      const bool over = parent_settled && settled;
      if (status.is_ok() && !over) status = made_->late(parent_->patience_ns);
      if (status.is_ok() && !over) return Status::ok();
      *moved = true;
      settle(status);
      return Status::ok();
    }
    case Step::kOutcomes:
      RR_TRY(exchange_->advance(moved));
      if (exchange_->done()) conclude();
      return Status::ok();
    case Step::kDone: break;
  }
  return Status::ok();
}

void Split::settle(const Status& status) {
  ok_ = status.is_ok();
  if (!ok_) log(kInfo, "a communicator cannot be split, new ones are made: " + status.text());
  exchange_ = std::make_unique<Allgather>(parent_->channel, &ok_, 1, &outcomes_);
  step_ = Step::kOutcomes;
}

void Split::conclude() {
  const char* outcomes = outcomes_.data.get();
  const bool all = std::all_of(outcomes, outcomes + outcomes_.bytes, [](char ok) { return ok; });
  if (all && child_) child_->communicator = made_;
  if (!all) {
    // Where it failed NCCL allows the parent nothing more, elsewhere it may be waiting still.
    if (made_) made_->abort();
    parent_->communicator->abort();
    parent_->communicator.reset();
  }
  step_ = Step::kDone;
}

}  // namespace ringreduce
