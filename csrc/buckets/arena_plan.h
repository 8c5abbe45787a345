// Gradient buckets that live in the shared arena of their host and are reduced where they are.
//
// The ranks agree on a plan once; from then on a bucket needs no negotiation. Rank r of a host
// reduces slice r of every rank's bucket and writes the result into every bucket, in rank
// order, so that all get the same bits: S bytes read and S written a rank, the least there is.
//
//   rank 0's bucket |aaaa|bbbb|      arrived: all ranks have filled their bucket
//   rank 1's bucket |aaaa|bbbb|      rank 0: a = a0 + a1 into both; rank 1: b likewise
//                                    finished: all slices are in place
//
// A slice is worked off in portions. With several hosts each portion, once reduced here, goes
// round the ring (host_reduce.h), several at once, and is then copied to the other buckets.
//
// A rank's arena has two sides. A bucket lies on side 0, until the program holds on to gradients there: then the
// caller launches it on side 1, whose pages are not touched before. Peers learn the side with the launch.
//
// The arrival counters are all the control there is; beside them each rank's launch counts name a rank that has
// gone astray.
//
// Where the plan is left, what is not complete on the rank that leaves is given up everywhere, and its messages
// between hosts are drained (plan_net.h).
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "common/settings.h"
#include "collectives/host_reduce.h"
#include "collectives/machine.h"
#include "agreement/departures.h"
#include "buckets/plan.h"
#include "buckets/plan_net.h"
#include "shm/segment.h"

namespace ringreduce {

class ArenaPlan final : public Plan {
 public:
  static size_t segment_bytes(int local_size, const std::vector<BucketSpec>& buckets);
  // How many of the first bytes are touched in any case: up to the end of side 0.
  static size_t reserved_bytes(int local_size, const std::vector<BucketSpec>& buckets);

  ArenaPlan(const Topology& topology, const std::vector<BucketSpec>& buckets, Reduction reduction, Scale scale,
            std::shared_ptr<Segment> segment, Net* net, Bell* bell, PlanId id, std::shared_ptr<Departures> departures);

  static constexpr int kSides = 2;
  char* buffer(int bucket, int side) const { return data(bucket, topology_.local(), side); }
  char* buffer(int bucket) const { return buffer(bucket, buckets_[bucket].side); }  // on the side of its last launch
  size_t bytes(int bucket) const { return buckets_[bucket].bytes; }
  // Makes sure that a bucket can be touched on a side.
  Status reserve(int bucket, int side) const;
  size_t arena_bytes() const { return stride_; }  // of one side of all this rank's buckets, from buffer(0, side) on

  Status launch(int bucket, Where where) override;
  Status advance(bool* moved) override;
  bool idle() const override { return queue_.empty() && in_flight_ == 0; }
  bool polled() const override { return in_flight_ > 0; }
  // Launched by all local ranks and not yet reduced here.
  bool committed() const override { return in_flight_ > 0 || (!queue_.empty() && arrived(queue_.front())); }
  bool complete(int bucket) const override;
  // Who has not launched it as often as this rank; if all have, who has not reduced its slice.
  std::string missing(int bucket) const override;
  std::vector<int> missing_ranks(int bucket) const override;
  uint64_t over() const override;
  int first_open() const override;
  std::shared_ptr<PlanNet> net() const override { return net_; }  // null on one host and where this rank sends nothing

 private:
  static constexpr int kInFlight = PlanNet::kTags;     // portions between hosts at once
  // On one host small, so that a call does not take long; between hosts what makes one message a step.
  size_t portion_limit() const { return one_host_ ? 1 << 20 : kMessageBytes * topology_.host_count(); }

  struct Bucket {
    size_t offset = 0, bytes = 0;
    DType dtype = DType::kFloat32;
    Range own;                 // the slice this rank reduces
    uint64_t launches = 0;
    int side = 0;              // of this rank's last launch
    size_t next = 0;           // of `own`: reduced up to here
    int in_flight = 0;
  };
  struct Portion {            // of one in flight between hosts
    int bucket = -1;
    Range range;
    HostReduce exchange;
  };
  struct Shared;

  char* data(int bucket, int local, int side) const {
    return data_ + (side * topology_.local_size() + local) * stride_ + buckets_[bucket].offset;
  }
  // Where a rank of this host has a bucket that all of them have launched.
  char* data(int bucket, int local) const;
  std::atomic<uint64_t>& of(std::atomic<uint64_t>* counts, int local, int bucket) const {
    return counts[local * round_up(buckets_.size() * 8, kLine) / 8 + bucket];
  }
  std::vector<int> behind(std::atomic<uint64_t>* counts, int ranks, int bucket, uint64_t unit) const;
  int reducers() const { return one_host_ ? topology_.local_size() : topology_.rails; }
  Status drop_lost() override;
  Status drain_if_over();
  bool given_up(int bucket) const;
  std::vector<int> peers() const;
  size_t largest_message() const;
  bool arrived(int bucket) const;
  void finish_if_done(int bucket);
  void reduce_local(int bucket, Range range);
  Status start_portion(bool* moved);
  Status exchange(bool* moved);
  void publish(int bucket, Range range);

  Topology topology_;
  std::shared_ptr<PlanNet> net_;
  Channel channel_;
  std::vector<Bucket> buckets_;
  Reduction reduction_;
  Scale scale_;
  std::shared_ptr<Segment> segment_;
  Bell* bell_;
  bool one_host_;
  int weight_;                 // of this rank's `finished`, as in Allreduce
  size_t stride_ = 0;          // bytes of one side of a rank's arena
  Shared* shared_ = nullptr;   // [bucket]
  // [local][bucket]: launches * kSides + side of the last one.
  std::atomic<uint64_t>* launched_ = nullptr;
  std::atomic<uint64_t>* reduced_ = nullptr;  // [local][bucket]: launches of which the rank's slice is in place
  char* data_ = nullptr;
  std::deque<int> queue_;      // launched, not yet fully reduced here
  uint64_t started_ = 0;       // portions, ever
  int in_flight_ = 0;
  Portion portions_[kInFlight];
  std::vector<const void*> sources_;
  std::vector<void*> targets_;
  std::shared_ptr<Departures> departures_;
};

}  // namespace ringreduce
