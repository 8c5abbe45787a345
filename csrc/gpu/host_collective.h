// A collective on GPU tensors through pinned host memory and the CPU's machine: where NCCL is
// missing or refuses.
//
//   GPU ──copy──► pinned ──machine of the CPU──► pinned ──copy──► GPU
#pragma once

#include <vector>

#include "gpu/collective.h"

namespace ringreduce {

class HostCollective : public Machine {
 public:
  HostCollective(GpuSet* set, std::vector<GpuCall> calls);

  Status advance(bool* moved) override;
  bool done() const override { return step_ == Step::kDone; }
  bool on_net() const override { return step_ == Step::kIn || (machine_ && machine_->on_net()); }
  std::string where() const override;

 private:
  enum class Step { kBegin, kIn, kRunning, kDone };
  // Host memory, which lives until the GPU has read from it.
  struct Memory {
    std::shared_ptr<char> in;
    Output received;
  };

  Status copy_in();
  void start();
  Status copy_out();

  GpuSet* set_;
  Device& device_;
  void* stream_;
  std::vector<GpuCall> calls_;
  Submission submission_;  // the calls as one, on host memory
  std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
  Event copied_;
  std::unique_ptr<Machine> machine_;
  Step step_ = Step::kBegin;
};

}  // namespace ringreduce
