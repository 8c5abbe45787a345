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
// A slice is worked off in segments. With several hosts each segment, once reduced here, goes
// round the ring (host_reduce.h), several at once, and is then copied to the other buckets.
//
// A rank's arena has two sides. A bucket lies on side 0, until the program holds on to gradients there: then the
// caller launches it on side 1, whose pages are not touched before. Peers learn the side with the launch.
//
// Buckets are launched in the same order by all ranks. The arrival counters are all the
// control there is; beside them each rank's launch counts name a rank that has gone astray.
//
// A rank whose backward pass fails leaves the plan, and with it all ranks, in the middle of the step: what is
// not complete on that rank is given up everywhere, and its messages between hosts are drained (plan_net.h).
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "common/settings.h"
#include "collectives/host_reduce.h"
#include "collectives/machine.h"
#include "buckets/plan_channel.h"
#include "agreement/departures.h"
#include "buckets/plan_net.h"
#include "shm/segment.h"

namespace ringreduce {

struct BucketSpec {
  size_t count = 0;  // elements
  DType dtype = DType::kFloat32;
  size_t bytes() const { return count * info(dtype).size; }
};

class Plan {
 public:
  static size_t segment_bytes(int local_size, const std::vector<BucketSpec>& buckets);
  // How many of the first bytes are touched in any case: up to the end of side 0.
  static size_t reserved_bytes(int local_size, const std::vector<BucketSpec>& buckets);

  Plan(const Topology& topology, const std::vector<BucketSpec>& buckets, Reduction reduction, Scale scale,
       std::shared_ptr<Segment> segment, Net* net, Bell* bell, PlanId id, std::shared_ptr<Departures> departures);

  const PlanId& id() const { return id_; }
  size_t bucket_count() const { return buckets_.size(); }
  static constexpr int kSides = 2;
  char* buffer(int bucket, int side) const { return data(bucket, topology_.local(), side); }
  char* buffer(int bucket) const { return buffer(bucket, buckets_[bucket].side); }  // on the side of its last launch
  size_t bytes(int bucket) const { return buckets_[bucket].bytes; }
  // Makes sure that a bucket can be touched on a side.
  Status reserve(int bucket, int side) const;
  size_t arena_bytes() const { return stride_; }  // of one side of all this rank's buckets, from buffer(0, side) on

  void launch(int bucket, int side = 0);
  bool complete(int bucket) const;  // its last launch
  int first_open() const;           // the first bucket whose last launch is not complete, or -1
  bool open() const { return first_open() >= 0; }  // in the middle of a step
  // How many launches of the plan are over, counted from its first.
  uint64_t completed() const;
  Status leave(const Departure& departure);
  const Status& left() const { return left_; }  // ok: nobody has
  // The bucket's last launch will not complete.
  bool lost(int bucket) const { return buckets_[bucket].ordinal > unaffected_; }
  const std::shared_ptr<PlanNet>& net() const { return net_; }  // null on one host and where this rank sends nothing
  int64_t launched_ns(int bucket) const { return buckets_[bucket].launched_ns; }
  Status advance(bool* moved);
  int64_t moved_ns() const { return moved_ns_; }  // last progress, or launch
  bool includes(int world_rank) const;
  // Launched by all local ranks and not yet reduced here: the peers rely on it.
  bool committed() const { return in_flight_ > 0 || (!queue_.empty() && arrived(queue_.front())); }
  bool idle() const { return queue_.empty() && in_flight_ == 0; }
  bool on_net() const { return in_flight_ > 0; }
  std::string missing(int bucket) const;  // who has not launched it as often as this rank
  Status failure;                   // of the last wait

 private:
  static constexpr int kInFlight = PlanNet::kTags;     // segments between hosts at once
  // On one host small, so that a call does not take long; between hosts what makes one message a step.
  size_t segment_limit() const { return one_host_ ? 1 << 20 : kMessageBytes * topology_.host_count(); }

  struct Bucket {
    size_t offset = 0, bytes = 0;
    DType dtype = DType::kFloat32;
    Range own;                 // the slice this rank reduces
    uint64_t launches = 0;
    int side = 0;              // of this rank's last launch
    uint64_t ordinal = 0;      // of its last launch, among all of the plan
    int64_t launched_ns = 0;
    size_t next = 0;           // of `own`: reduced up to here
    int in_flight = 0;
  };
  struct Segments {            // of one in flight between hosts
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
  Status drain_if_over();
  bool given_up(int bucket) const;
  std::vector<int> peers() const;
  size_t largest_message() const;
  bool arrived(int bucket) const;
  void finish_if_done(int bucket);
  void reduce_local(int bucket, Range range);
  Status start_segment(bool* moved);
  Status exchange(bool* moved);
  void publish(int bucket, Range range);

  PlanId id_;
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
  char* data_ = nullptr;
  std::deque<int> queue_;      // launched, not yet fully reduced here
  uint64_t started_ = 0;       // segments, ever
  int in_flight_ = 0;
  int64_t moved_ns_ = 0;
  Segments segments_[kInFlight];
  std::vector<const void*> sources_;
  std::vector<void*> targets_;
  std::shared_ptr<Departures> departures_;
  Status left_;
  uint64_t launches_ = 0, unaffected_ = UINT64_MAX;
};

}  // namespace ringreduce
