// Makes the communicator of a process set: inside its first GPU operation, so that the ranks are
// known to take part, and over the CPU's channel.
//
//   gather GpuInfo ─► choose_path ─► start NCCL ─► settled? ─► gather outcomes
//
// The outcomes are compared because NCCL may refuse where nothing foretold it (two ranks on one
// GPU, a driver too old): if any rank failed, all take the path through host memory.
#pragma once

#include <memory>
#include <string>

#include "collectives/allgather.h"
#include "gpu/collective.h"

namespace ringreduce {

class Rendezvous {
 public:
  explicit Rendezvous(GpuSet* set) : set_(set) {}

  Status advance(bool* moved);
  bool done() const { return step_ == Step::kDone; }
  bool on_net() const { return step_ == Step::kStarting || (exchange_ && exchange_->on_net()); }
  std::string where() const;

 private:
  enum class Step { kBegin, kInfos, kStarting, kOutcomes, kDone };
  enum Answer : int32_t { kMade, kNoAnswer, kRefused };
  struct Outcome {
    Answer answer = kMade;
    char error[500] = {};
  };

  Status begin();
  void choose();
  void outcome(const Status& status);
  void conclude();
  void use_host(const std::string& why);
  void gather(const void* data, size_t bytes);
  template <typename T>
  std::vector<T> gathered() const;

  GpuSet* set_;
  Step step_ = Step::kBegin;
  GpuInfo mine_;
  Outcome my_outcome_;
  Output output_;
  size_t expected_ = 0;  // bytes from each rank
  std::unique_ptr<Allgather> exchange_;
};

}  // namespace ringreduce
