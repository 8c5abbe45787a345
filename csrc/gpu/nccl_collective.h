// A collective that NCCL executes, with kernels of ours for what it lacks.
//
//   allreduce       one tensor in place or to its result; several: packed, reduced, unpacked
//   allgather       sizes first, over the CPU's channel; then at once, or a broadcast a rank
//   reducescatter   equal parts at once; others padded to the largest
//   alltoall        the table of sizes over the CPU's channel, then sends and receives in a group; so do
//                   gather and scatter
//   reduce          as allreduce: elsewhere than on the root the result is dropped
//   reductions that NCCL lacks (nccl_types.h): everything gathered, then reduced in rank order
#pragma once

#include <vector>

#include "gpu/collective.h"
#include "gpu/nccl_types.h"

namespace ringreduce {

class NcclCollective : public Machine {
 public:
  NcclCollective(GpuSet* set, std::vector<GpuCall> calls);

  Status advance(bool* moved) override;
  bool done() const override { return step_ == Step::kDone; }
  bool on_net() const override { return step_ == Step::kSettling || (sizes_machine_ && sizes_machine_->on_net()); }
  std::string where() const override;

 private:
  enum class Step { kBegin, kSizes, kSettling, kDone };

  const Submission& s() const { return *calls_[0].submission; }
  void gather_sizes();
  Status take_sizes();
  Status enqueue();
  Status enqueue_allreduce();
  Status enqueue_reducescatter();
  Status enqueue_received();
  Status result(std::vector<int64_t> sizes, char** to);
  Status reduce_gathered(const void* in, size_t bytes, Range own, char* out);
  Status reduce(void* dst, std::vector<const void*> sources, size_t count);
  Status scaled(void* dst, const void* src, size_t count, Scale scale);
  Status finish();
  Status scratch(size_t bytes, char** memory);
  std::vector<PackItem> items(bool outputs, size_t* bytes) const;

  GpuSet* set_;
  Communicator& communicator_;
  Device& device_;
  std::vector<GpuCall> calls_;
  Step step_ = Step::kBegin;
  std::vector<int64_t> sizes_, send_;
  Output gathered_sizes_;
  std::unique_ptr<Machine> sizes_machine_;
  std::function<Status()> after_;  // what follows on the stream once NCCL has enqueued its part
  std::vector<std::shared_ptr<char>> scratch_;
};

}  // namespace ringreduce
