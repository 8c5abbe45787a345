// Alltoall with uneven splits: block d of this rank's input goes to rank d. Gather and scatter are the same with
// one rank that receives from, or sends to, all: nothing is said between other pairs.
//
// First every rank learns how much it receives from whom: one step of the in-host channel
// carries each rank's counts, one 8-byte message those between two ranks of different hosts.
// Then the blocks move: inside the host through the staging slots, a piece for every local
// rank in each step; between hosts each block is one direct message.
#pragma once

#include <vector>

#include "collectives/machine.h"
#include "collectives/single_copy.h"
#include "ops/submission.h"

namespace ringreduce {

class Alltoall : public Machine {
 public:
  // `known`: what the ranks of the one host have told each other already.
  Alltoall(Channel* channel, const Submission& submission, Output* output, const Matrix& known = {});

  static Reads reads(const Topology& topology, const Submission& submission, Output* output, const Matrix& bytes);

  Status advance(bool* moved) override;
  bool done() const override;
  bool on_net() const override { return topology_.host_count() > 1; }
  std::string where() const override;

 private:
  Status start();
  Status exchange_counts(bool* moved);
  Status start_blocks();
  bool fill();
  bool drain();
  Status test_all(bool* all);
  // Of a rank's slot: a piece for every local rank, or the whole for the root.
  size_t part(int to_local) const { return to_ < 0 ? to_local * piece_ : 0; }
  bool sends(int from, int to) const { return (from_ < 0 || from == from_) && (to_ < 0 || to == to_); }
  size_t pair_bytes(int from_local, int to_local) const { return local_bytes_[from_local * topology_.local_size() + to_local]; }

  Channel* channel_;
  const Topology& topology_;
  const char* in_;
  int from_, to_;  // the only rank that sends or receives, or -1
  std::vector<int64_t> send_bytes_;
  std::vector<size_t> send_offsets_, receive_offsets_;
  Output* output_;
  enum class Phase { kStart, kCounts, kBlocks } phase_ = Phase::kStart;
  bool header_filled_ = false, header_drained_ = false, net_done_ = false;
  Matrix local_bytes_;               // by local ranks
  std::vector<Request> requests_;    // all transfers between hosts of the phase
  size_t piece_ = 0;
  uint64_t header_step_ = 0, first_ = 0, steps_ = 0;
  uint64_t filled_ = 0, drained_ = 0;
};

}  // namespace ringreduce
