// Net among the threads of one process: a world of N ranks with real message semantics, made
// unkind on request. The tests of the algorithms and of the engine run on it, under the
// sanitizers too.
//
//   sender's isend ──┐                                      receiver's k-th test()
//                    ├─ matched in order, per (from, to, tag) ──> payload copied ──> done
//   receiver's irecv ┘                                      sender done at its own j-th test()
//
// The payload is copied at the last moment, straight from the sender's buffer to the
// receiver's, so a buffer reused too early gives wrong bits (and a race under
// ThreadSanitizer). A send completes only once it was received, as MPI is free to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "net/net.h"

namespace ringreduce {

struct LoopbackOptions {
  uint64_t seed = 0;
  // How likely a message is to be late, and its sender, apart from that, to learn of it late:
  // by 1 to 16 calls of test(). It depends on seed, channel and place in the channel only,
  // not on how the threads run.
  double delay_probability = 0;
};

class LoopbackWorld {
 public:
  explicit LoopbackWorld(int size, LoopbackOptions options = {});
  // Rank's end. Any number of threads may use different ends at once; an end may outlive the
  // world object. What an end still had in flight when it is destroyed never completes at
  // the other end, and its buffers are not touched any more.
  std::unique_ptr<Net> net(int rank);

 private:
  friend class LoopbackNet;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace ringreduce
