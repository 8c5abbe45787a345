// Why the job cannot go on, in the words that all ranks raise, and the board of a host where it is written.
//
//   a rank of this host knows ─► said[its place] ─┐ Watch: the first that is certain
//   other hosts' guardians   ─► lifeline ─────────┴─► verdict, written once ─► all ranks of the host raise it
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "ops/topology.h"

namespace ringreduce {

enum class Certainty : uint32_t {
  kMayFollow,   // from another cause, of which news may come in a moment: MPI has failed
  kHowUnknown,  // a rank has died; how, others may tell in a moment
  kCertain,
};

struct Cause {
  static constexpr size_t kText = 1200;  // bytes at most; longer ones are cut
  int rank = -1;                         // of the world, which is lost; -1: none in particular
  Certainty certainty = Certainty::kCertain;
  std::string text;
  bool ended = true;                     // a process has ended, or a host is out of reach; else an engine has failed
};

// In shared memory; zeroed it is empty.
struct VerdictBoard {
  class Slot {
   public:
    bool put(const Cause& cause);        // false: something is there, or is being written
    bool get(Cause* cause) const;        // false: nothing is there
    bool is_there() const { return state_.load(std::memory_order_acquire) == kThere; }

   private:
    static constexpr uint32_t kEmpty = 0, kWriting = 1, kThere = 2;
    std::atomic<uint32_t> state_;
    Certainty certainty_;
    uint32_t bytes_, ended_;
    int32_t rank_;
    char text_[Cause::kText];
  };
  Slot verdict;
  std::atomic<uint32_t> shown;           // a rank of this host has said on standard error that another one has died
  Slot said[kMaxLocal];                  // by local index: what this rank has found first
};

}  // namespace ringreduce
