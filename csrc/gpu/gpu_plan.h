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
// Without NCCL the bucket goes through a Plan of the CPU (buckets/plan.h does the reduction), which
// the caller provides: GPU ─► arena ─► reduced ─► GPU.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan_channel.h"
#include "gpu/communicator.h"
#include "gpu/nccl_types.h"

namespace ringreduce {

// The buckets of a CPU plan, as this one sees them.
struct HostBuckets {
  std::shared_ptr<void> pin;  // of their memory; null where that is impossible
  std::function<char*(int)> buffer;
  std::function<void(int)> launch;
  std::function<bool(int)> complete;  // its last launch
  std::function<std::string(int)> missing;
};

struct GpuBucketSpec {
  char* data = nullptr;
  size_t count = 0;
  DType dtype = DType::kFloat32;
  size_t bytes() const { return count * info(dtype).size; }
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

class GpuPlan {
 public:
  // What NCCL will be called for.
  static std::vector<Communicator::AllReduce> calls(const std::vector<GpuBucketSpec>& buckets, const GpuReduction& reduction);
  // `host` is null where the communicator is NCCL's. `ranks`: those of the set, as world ranks.
  GpuPlan(std::shared_ptr<Communicator> communicator, std::vector<int> ranks, const std::vector<GpuBucketSpec>& buckets,
          const GpuReduction& reduction, std::shared_ptr<HostBuckets> host, PlanId id);

  const PlanId& id() const { return id_; }

  // The bucket lies there from its next launch on.
  void set_buffer(int bucket, char* data) { buckets_[bucket].data = data; }
  Status launch(int bucket, void* stream);
  Status advance(bool* moved);
  bool idle() const { return queue_.empty(); }      // everything is enqueued
  int first_open() const { return queue_.empty() ? 0 : queue_.front().bucket; }
  bool enqueued(int bucket) const { return buckets_[bucket].pending == 0; }
  uint64_t launches() const { return launches_; }
  // All but the first `unaffected` launches of the plan never finish. Once those have, NCCL's communicator is aborted,
  // so that streams run on.
  Status leave(uint64_t unaffected, const Status& why);
  const Status& left() const { return left_; }                   // ok: nobody has
  bool lost(int bucket) const { return buckets_[bucket].ordinal > unaffected_; }  // its last launch
  bool may_launch() const { return launches_ < unaffected_; }
  bool aborting() const { return !left_.is_ok() && !host_ && !aborted_; }
  Status abort_if_over();
  // `stream` waits for the bucket's last launch, which is enqueued.
  Status join(int bucket, void* stream);
  size_t bucket_count() const { return buckets_.size(); }
  Communicator& communicator() const { return *communicator_; }
  const std::shared_ptr<Communicator>& shared_communicator() const { return communicator_; }
  const GpuStream& stream() const { return communicator_->stream(); }
  bool includes(int world_rank) const { return std::find(ranks_.begin(), ranks_.end(), world_rank) != ranks_.end(); }
  int64_t launched_ns(int bucket) const { return buckets_[bucket].launched_ns; }
  int64_t moved_ns() const { return moved_ns_; }
  std::string missing(int bucket) const;  // what a bucket that is not enqueued waits for
  Status failure;                            // of the last wait

 private:
  struct Bucket : GpuBucketSpec {
    NcclReduction how;
    int pending = 0;        // launches not yet enqueued
    int64_t launched_ns = 0;
    Event finished;
    uint64_t ordinal = 0;   // of its last launch, among all of the plan
    bool captured = false, joined = false;
  };
  // A launch on its way: kReady ─► kSettling ─► gone; through the host: kReady ─► kCopying ─►
  // kReducing ─► gone.
  enum class State { kReady, kSettling, kCopying, kReducing };
  struct Launch {
    int bucket;
    State state;
    bool captured;
    Event event;            // ready, then: copied
  };

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
  std::shared_ptr<HostBuckets> host_;
  std::deque<Launch> queue_;
  std::vector<int> ranks_;
  int64_t moved_ns_ = 0;
  bool used_ = false;       // a first launch is over
  PlanId id_;
  Status left_;
  uint64_t launches_ = 0, unaffected_ = UINT64_MAX;
  bool aborted_ = false;
};

}  // namespace ringreduce
