// Allgather of blocks whose sizes may differ by rank.
//
// Rounds: a header round in which every rank publishes the size of its block, unless all know the
// sizes beforehand, then one round a chunk. A round is a few steps of the in-host channel: in the first, every local rank stages
// its own chunk; in the others, the chunks of the other hosts, each received by one local rank
// straight into its slot. In every step, all copy all staged chunks out.
//
//   host A: ranks 0 1      round: step 0  stage 0 | 1     (own; also sent to the other hosts)
//   host B: ranks 2 3             step 1  stage 2 | 3     (received from host B)
//
// Each host receives every foreign block once: (H-1)/H of the result, the least possible.
#pragma once

#include <vector>

#include "collectives/machine.h"
#include "collectives/single_copy.h"
#include "ops/submission.h"

namespace ringreduce {

class Allgather : public Machine {
 public:
  // Sizes that are known stand in output->counts; else it is empty.
  Allgather(Channel* channel, const Submission& submission, Output* output)
      : Allgather(channel, submission.pieces[0].in, submission.pieces[0].bytes, output) {}
  Allgather(Channel* channel, const char* in, size_t bytes, Output* output);

  static Reads reads(const Topology& topology, const Submission& submission, Output* output, const Matrix&);

  Status advance(bool* moved) override;
  bool done() const override;
  bool on_net() const override { return topology_.host_count() > 1; }
  std::string where() const override;

 private:
  // What each local rank stages in one step of a round: a set rank, or -1.
  using Plan = std::vector<std::vector<int>>;
  static Plan make_plan(const Topology& topology);

  Range block(int rank, uint64_t round) const;  // bytes of the rank's block in this round
  Status stage(bool* moved);
  Status receive(bool* moved);
  Status drain(bool* moved);
  Status send(uint64_t round, bool* moved);
  Status finish_header();
  const char* source(uint64_t round) const;

  Channel* channel_;
  const Topology& topology_;
  const char* in_;
  int64_t own_bytes_;
  Output* output_;
  Plan plan_;
  uint64_t per_round_;       // steps of a round
  uint64_t headers_;         // rounds before the data, 0 or 1
  uint64_t steps_, first_;   // known so far: the header round, later all
  bool header_done_ = false;
  bool past_caches_ = false;  // a result that no cache holds is written without reading it first
  size_t chunk_ = 0;
  std::vector<size_t> offsets_;
  uint64_t staged_ = 0, published_ = 0, drained_ = 0, sent_rounds_ = 0;
  std::vector<std::vector<Request>> sends_;  // [round % kSlots][other host]
  Request receives_[Staging::kSlots];
};

}  // namespace ringreduce
