// What this rank has on its GPU. Operations and buckets go there and are forgotten; what remains is to look now and
// then whether they got through, as a lost peer stops NCCL for good.
#pragma once

#include <memory>
#include <vector>

#include "gpu/collective.h"
#include "gpu/gpu_plan.h"

namespace ringreduce {

class GpuWatch {
 public:
  explicit GpuWatch(double timeout_s) : timeout_ns_(to_ns(timeout_s)) {}

  Status attach(std::shared_ptr<Device> device);
  const std::shared_ptr<Device>& device() const { return device_; }  // null without a GPU
  Status get(std::shared_ptr<Device>* device) const;                 // or an error
  void make_current();                            // on the background thread

  void add(GpuSet* set);
  void add(std::shared_ptr<GpuPlan> plan) { plans_.push_back(std::move(plan)); }
  // A set or plan that is removed: what is still in use on the GPU lives on.
  void retire(GpuSet* set);
  void retire(const Plan& plan);

  bool watching() const;                          // something is to be looked at
  bool pending() const;                           // something is not over
  Status check();                                 // looks
  // Ends what is stuck. At a shutdown in order the idle communicators are not aborted but destroyed: NCCL then sees to
  // it that what other ranks still get from this one arrives. Waits for NCCL, at most 10 s (Communicator::abort_all).
  void abort(bool in_order);
  void clear();

 private:
  std::vector<Communicator*> communicators() const;

  const int64_t timeout_ns_;
  std::shared_ptr<Device> device_;
  const Device* current_ = nullptr;                     // the background thread's
  std::vector<GpuSet*> sets_;
  std::vector<std::shared_ptr<GpuPlan>> plans_;
  std::vector<std::shared_ptr<GpuPlan>> aborting_;      // removed, left, and not yet aborted
  std::vector<std::shared_ptr<Communicator>> retired_;  // of removed sets and plans
};

}  // namespace ringreduce
