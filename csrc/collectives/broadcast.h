// Broadcast, pipelined chunk by chunk: one rank a host (the publisher) puts the chunk into its
// staging slot, the others copy it out; between hosts the publishers form a chain.
//
//   host A (root)      host B             host C
//   root: tensor ->    publisher:         publisher:
//   slot ----net-----> slot ------net---> slot          every link carries the bytes once
//    |                  |                  |
//   locals copy out    locals copy out    locals copy out
#pragma once

#include "collectives/machine.h"
#include "collectives/single_copy.h"
#include "ops/submission.h"

namespace ringreduce {

class Broadcast : public Machine {
 public:
  // The input is read on the root only; the output is written on every rank (on the root unless it is the input).
  Broadcast(Channel* channel, const Submission& submission, Output*);

  static Reads reads(const Topology& topology, const Submission& submission, Output* output, const Matrix&);

  Status advance(bool* moved) override;
  bool done() const override { return drained_ == steps_; }
  bool on_net() const override { return next_ >= 0 || previous_ >= 0; }
  std::string where() const override;

 private:
  Range chunk(uint64_t step) const { return chunk_range(bytes_, channel_->stream.chunk(bytes_), step); }
  int index(uint64_t step) const { return static_cast<int>(step % Staging::kSlots); }
  char* slot(uint64_t step) const { return channel_->stream.slot(first_ + step, publisher_); }
  Status stage(bool* moved);
  Status receive(bool* moved);
  Status publish(uint64_t step);
  Status drain(bool* moved);

  Channel* channel_;
  const Topology& topology_;
  const char* in_;
  char* out_;
  size_t bytes_;
  bool is_root_;
  int publisher_;                  // local index of this host's publisher
  bool publishing_;                // this rank is it
  int previous_ = -1, next_ = -1;  // publishers before and after in the chain, world ranks
  uint64_t steps_, first_;
  uint64_t staged_ = 0, published_ = 0, drained_ = 0;
  Request receives_[Staging::kSlots], sends_[Staging::kSlots];
};

}  // namespace ringreduce
