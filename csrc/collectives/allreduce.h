// Allreduce of ordinary tensors, pipelined chunk by chunk through the staging slots.
//
//   fill     copy the chunk into this rank's slot (all but the slice this rank reduces itself)
//   reduce   slice r of all slots, in rank order, into rank r's slot
//   exchange (several hosts) the slice with the same rail of the other hosts, see host_reduce.h
//   drain    copy every other slice from the slot of the rank that reduced it to the output
//
//   tensor  |aaaa|bbbb|     rank 0 stages b, rank 1 stages a; rank 0 reduces a (its own from
//   rank 0: slice a         the tensor, rank 1's from the slot) into its slot and its output;
//   rank 1: slice b         then each copies the other's slice out.
//
// Bytes touched per rank on one host of L ranks, S bytes: (3 - 2/L) S read and 2 S written, of
// which S read and S written in DRAM; the rest stays in the caches.
#pragma once

#include <vector>

#include "collectives/host_reduce.h"
#include "collectives/machine.h"
#include "collectives/single_copy.h"
#include "ops/submission.h"

namespace ringreduce {

class Allreduce : public Machine {
 public:
  Allreduce(Channel* channel, const Submission& submission, Output*)
      : Allreduce(channel, Pieces(submission.pieces), submission) {}
  Allreduce(Channel* channel, Pieces pieces, const Arithmetic& arithmetic);  // several fused

  // What a rank reads where nothing is staged.
  static Reads reads(const Topology& topology, const Submission& submission, Output* output, const Matrix&);

  Status advance(bool* moved) override;
  bool done() const override { return drained_ == steps_; }
  bool on_net() const override { return on_net_; }
  std::string where() const override;

 private:
  struct Slice {
    Range range;                // within the chunk
    const char* in = nullptr;   // where it lies in the tensor, null if in several pieces
    char* out = nullptr;
  };

  Range chunk(uint64_t step) const { return chunk_range(pieces_.bytes(), chunk_, step); }
  Slice own_slice(uint64_t step) const;
  bool fill();
  bool reduce_slice();
  Status exchange(bool* moved);
  bool drain();
  void settle(uint64_t step) { channel_->stream.settle(first_ + step, weight_); }

  Channel* channel_;
  const Topology& topology_;
  Pieces pieces_;
  DType dtype_;
  Reduction reduction_;
  Scale scale_;
  bool stream_stores_;
  bool one_host_;
  int weight_;  // of this rank's settle: the rails stand for the ranks that reduce nothing
  size_t chunk_;
  uint64_t steps_, first_;
  uint64_t filled_ = 0, reduced_ = 0, drained_ = 0;
  bool on_net_ = false;
  std::vector<const void*> sources_;
  HostReduce exchanges_[Staging::kSlots];
};

}  // namespace ringreduce
