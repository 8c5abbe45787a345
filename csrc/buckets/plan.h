// Gradient buckets that the ranks of a process set have agreed on once: from then on a bucket needs no
// negotiation, it is launched. This is what all plans have in common; how a bucket is reduced is theirs.
//
//   Plan ─┬─ ArenaPlan   in the memory that the ranks of a host share (arena_plan.h)
//         └─ GpuPlan     on GPUs (gpu/gpu_plan.h); without NCCL through an ArenaPlan
//
// Buckets are launched in the same order by all ranks, so a plan's launches are counted alike on all of them. A
// rank whose backward pass fails leaves the plan in the middle of a step (agreement/departures.h): its first
// `unaffected` launches go on everywhere, all others are lost.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan_channel.h"
#include "common/clock.h"
#include "common/dtype.h"
#include "common/status.h"

namespace ringreduce {

class PlanNet;

struct BucketSpec {
  size_t count = 0;  // elements
  DType dtype = DType::kFloat32;
  size_t bytes() const { return count * info(dtype).size; }
};

class Plan {
 public:
  // What is launched: what is on this side of the arena; what will be there behind this stream of the GPU.
  struct Where {
    Where(int side = 0) : side(side) {}
    Where(void* stream) : stream(stream) {}
    int side = 0;
    void* stream = nullptr;
  };

  // `ranks`: of the set, as world ranks.
  Plan(PlanId id, std::vector<int> ranks, size_t buckets) : id_(id), ranks_(std::move(ranks)), last_(buckets) {}
  virtual ~Plan() = default;

  const PlanId& id() const { return id_; }
  // Names of what is in each bucket, for texts.
  void set_contents(std::vector<std::string> contents) { contents_ = std::move(contents); }
  // "gradient bucket 4 (layer4.weight and 3 more)"
  std::string title(int bucket) const {
    const std::string named = bucket < static_cast<int>(contents_.size()) ? " (" + contents_[bucket] + ")" : "";
    return "gradient bucket " + std::to_string(bucket) + named;
  }
  int bucket_count() const { return static_cast<int>(last_.size()); }
  bool includes(int rank) const { return std::find(ranks_.begin(), ranks_.end(), rank) != ranks_.end(); }

  // kInvalid, kUnsupported: the caller's mistake; nothing has begun.
  virtual Status launch(int bucket, Where where) = 0;
  virtual Status advance(bool* moved) = 0;
  virtual bool idle() const = 0;                     // there is nothing to advance
  virtual bool polled() const = 0;                   // what it waits for rings no bell
  virtual bool on_gpu() const { return false; }      // complete means: enqueued
  virtual bool committed() const { return false; }   // the peers rely on this rank to advance it
  virtual bool complete(int bucket) const = 0;       // its last launch
  virtual Status join(int, void*) { return Status::ok(); }  // the stream waits for a complete bucket
  virtual std::string missing(int bucket) const = 0; // what a bucket that is not complete waits for
  virtual std::vector<int> missing_ranks(int) const { return {}; }  // of the world: known to hold it up
  int64_t launched_ns(int bucket) const { return last_[bucket].ns; }
  int64_t moved_ns() const { return moved_ns_; }     // last progress, or launch
  Status failure;                                    // of the last wait

  const Status& left() const { return left_; }       // ok: nobody has
  bool may_launch() const { return launches_ < unaffected_; }
  bool lost(int bucket) const { return last_[bucket].ordinal > unaffected_; }  // its last launch
  // How many launches are over on this rank, or will be, whatever it does from now on.
  virtual uint64_t over() const = 0;
  // By the others, for what does not come any more if this rank leaves now.
  virtual bool counted_on() const { return may_launch(); }
  Status leave(uint64_t unaffected, const Status& why) {
    if (unaffected >= unaffected_) return Status::ok();
    unaffected_ = unaffected;
    left_ = why;
    return drop_lost();
  }
  // To close it now is to leave it: it is in the middle of a step, with this bucket; or -1.
  virtual int first_open() const = 0;
  // Its messages between hosts; null where it has none.
  virtual std::shared_ptr<PlanNet> net() const { return nullptr; }

 protected:
  void count_launch(int bucket) { last_[bucket] = {++launches_, moved_ns_ = now_ns()}; }
  uint64_t ordinal(int bucket) const { return last_[bucket].ordinal; }
  Status in_flight(int bucket) const {
    return {Code::kInvalid, "gradient bucket " + std::to_string(bucket) + " is in flight (" + missing(bucket) +
                                "); wait for it before it is launched again"};
  }
  virtual Status drop_lost() = 0;

  const PlanId id_;
  const std::vector<int> ranks_;
  Status left_;
  uint64_t launches_ = 0, unaffected_ = UINT64_MAX;
  int64_t moved_ns_ = now_ns();

 private:
  struct Launch {
    uint64_t ordinal = 0;  // among all of the plan
    int64_t ns = 0;
  };
  std::vector<Launch> last_;  // by bucket
  std::vector<std::string> contents_;
};

}  // namespace ringreduce
