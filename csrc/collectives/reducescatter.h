// Reducescatter: block d of every rank's input, reduced, goes to rank d.
//
// Every step stages one piece of each block, so that all ranks reduce at the same time:
//
//   slot   | piece of block 0 | piece of block 1 | ... | piece of block n-1 |
//
// On its host, rank d reduces its own pieces from all slots. For a rank of another host, the
// local rank that stands for it (Topology::counterpart) reduces and sends the partial result;
// rank d combines the partial results in host order. Each host sends (H-1)/H of the input.
#pragma once

#include <vector>

#include "collectives/machine.h"
#include "collectives/single_copy.h"
#include "ops/submission.h"

namespace ringreduce {

class Reducescatter : public Machine {
 public:
  Reducescatter(Channel* channel, const Submission& submission, Output* output);

  static Reads reads(const Topology& topology, const Submission& submission, Output* output, const Matrix&);

  Status advance(bool* moved) override;
  bool done() const override { return allocated_ && drained_ == steps_; }
  bool on_net() const override { return topology_.host_count() > 1; }
  std::string where() const override;

 private:
  struct Slot {  // transfers of one step between hosts
    std::vector<Request> sends, receives;
    std::vector<char> outgoing, incoming;
  };

  Range piece(int rank, uint64_t step) const { return chunk_range(block_bytes_[rank], piece_, step); }
  Slot& slot(uint64_t step) { return slots_[step % Staging::kSlots]; }
  bool fill();
  Status reduce_pieces(bool* moved);
  void reduce_staged(int rank, uint64_t step, char* to, Scale scale);
  Status start_exchange(uint64_t step);
  Status finish(bool* moved);
  void combine(uint64_t step);

  Channel* channel_;
  const Topology& topology_;
  const char* in_;
  Output* output_;
  std::vector<int64_t> block_bytes_;  // of each rank of the set; the input is the blocks end to end
  std::vector<size_t> offsets_;
  DType dtype_;
  Reduction reduction_;
  Scale scale_;
  size_t piece_;
  std::vector<int> served_;  // ranks of other hosts this rank reduces for
  bool allocated_ = false;
  uint64_t steps_, first_;
  uint64_t filled_ = 0, reduced_ = 0, drained_ = 0;
  std::vector<const void*> sources_;
  Slot slots_[Staging::kSlots];
};

}  // namespace ringreduce
