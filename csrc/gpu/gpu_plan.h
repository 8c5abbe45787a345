// Gradient buckets in GPU memory, reduced in place. The ranks agree on a plan once; from then on a
// bucket is launched from the hook that filled it: an event, one call of NCCL, an event. No other
// thread takes part, and the host waits for nothing.
//
//   caller's stream    ... gradients ─┬─────────────── wait(bucket) ─► optimizer
//   plan's stream                     └► reduction of the bucket ─┘
//
// A plan has a communicator of its own: its buckets come in the order of the plan, and may meet
// negotiated operations of the same ranks in any order.
//
// Without NCCL the bucket goes through an ArenaPlan with the same buckets, which the caller provides and
// others advance: GPU ─► arena ─► reduced ─► GPU.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "buckets/arena_plan.h"
#include "gpu/communicator.h"
#include "gpu/nccl_types.h"

namespace ringreduce {

struct GpuBucketSpec : BucketSpec {
  GpuBucketSpec(char* data, size_t count, DType dtype) : BucketSpec{count, dtype}, data(data) {}
  char* data;
};

// Of all buckets of a plan. `scale` does not contain the average's 1/size.
struct GpuReduction {
  Reduction reduction;
  bool average;
  Scale scale;
  int size;
  NcclReduction of(DType dtype) const {
    NcclReduction how;
    nccl_reduction(dtype, reduction, average, scale, size, &how);  // gradients are floating point or complex: NCCL has them all
    return how;
  }
};

class GpuPlan final : public Plan {
 public:
  // Of the ranks of `set`, with the infos of all of them. `host` is null where NCCL reduces. Pinning the host's arena
  // takes long; NCCL's communicator is made on a thread.
  static Status make(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                     const std::vector<GpuBucketSpec>& buckets, const GpuReduction& reduction, std::shared_ptr<ArenaPlan> host,
                     PlanId id, std::shared_ptr<GpuPlan>* plan);
  // `pin` keeps the host's memory pinned, and alive.
  GpuPlan(std::shared_ptr<Communicator> communicator, std::vector<int> ranks, const std::vector<GpuBucketSpec>& buckets,
          const GpuReduction& reduction, std::shared_ptr<ArenaPlan> host, std::shared_ptr<void> pin, PlanId id);

  // The bucket lies there from its next launch on.
  void set_buffer(int bucket, char* data) { buckets_[bucket].data = data; }
  Status launch(int bucket, Where where) override;
  Status advance(bool* moved) override;
  bool idle() const override { return queue_.empty(); }  // everything is enqueued
  bool polled() const override { return !idle(); }
  bool on_gpu() const override { return true; }
  bool complete(int bucket) const override { return buckets_[bucket].pending == 0 && !lost(bucket); }
  // `stream` waits for the bucket's last launch.
  Status join(int bucket, void* stream) override;
  std::string missing(int bucket) const override;
  std::vector<int> missing_ranks(int bucket) const override { return host_ ? host_->missing_ranks(bucket) : std::vector<int>(); }
  // What NCCL has enqueued goes on. What is in the queue would need this plan, which may be closed next, and the
  // caller's memory; what goes through host memory must be complete, as the memory is the caller's again.
  uint64_t over() const override { return host_ ? host_->over() : launches_ - queue_.size(); }
  bool counted_on() const override { return host_ ? may_launch() : over() < unaffected_; }
  int first_open() const override;
  // NCCL's communicator is to be aborted, so that streams run on, once all launches that others count on are over.
  bool aborting() const { return !left_.is_ok() && !host_ && !aborted_; }
  Status abort_if_over();
  Communicator& communicator() const { return *communicator_; }
  const std::shared_ptr<Communicator>& shared_communicator() const { return communicator_; }
  const GpuStream& stream() const { return communicator_->stream(); }

 private:
  struct Bucket : GpuBucketSpec {
    Bucket(const GpuBucketSpec& spec, const NcclReduction& how) : GpuBucketSpec(spec), how(how) {}
    NcclReduction how;
    int pending = 0;        // launches not yet enqueued
    Event finished;
    bool joined = false;
  };
  // A launch on its way: kReady ─► kSettling ─► gone; through the host: kReady ─► kCopying ─►
  // kReducing ─► gone.
  enum class State { kReady, kSettling, kCopying, kReducing };
  struct Launch {
    int bucket;
    uint64_t ordinal;       // among all of the plan
    State state;
    bool captured;
    Event event;            // ready, then: copied
  };

  Status drop_lost() override;
  Status settle(int64_t patience_ns);
  Status step(Launch* launch, bool turn, bool* moved, bool* over);
  Status issue(Launch* launch);
  Status copy_in(Launch* launch);
  Status finish(Launch* launch);
  void watch(const Launch& launch, const Event& event);
  Status scaled(Bucket& bucket, Scale scale);

  std::shared_ptr<Communicator> communicator_;
  Device& device_;
  std::vector<Bucket> buckets_;
  std::shared_ptr<ArenaPlan> host_;
  std::shared_ptr<void> pin_;
  std::deque<Launch> queue_;
  bool used_ = false;       // a first launch is over
  bool aborted_ = false;
};

}  // namespace ringreduce
