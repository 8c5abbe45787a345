// Which ranks of a process set have shut down, and what they said last: a board in the set's memory on each host.
//
//   host 0   rank 1 says farewell ─► board ─► leader ──┐ tree (host_tree.h)
//   host 1                           board ◄─ leader ◄─┘      ranks 2, 3 read it
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "agreement/op_table.h"
#include "common/status.h"
#include "ops/topology.h"

namespace ringreduce {

// In shared memory; zeroed it is empty. Words are written before the flag that says that a rank has gone.
struct FarewellBoard {
  static constexpr int kMostRanks = 4096;  // of the world, that are known by name on other hosts
  struct Words {
    static constexpr size_t kMost = 500;  // bytes; longer ones are cut
    std::atomic<uint32_t> bytes;
    char text[kMost];
  };
  std::atomic<uint32_t> gone[kMaxLocal];                 // by local index
  std::atomic<uint32_t> first_elsewhere;                 // world rank + 1 of the first on another host
  std::atomic<uint64_t> elsewhere[kMostRanks / 64];      // of all there, by world rank
  Words words[kMaxLocal], words_elsewhere;               // the latter: of the first there that had any
  std::atomic<uint32_t> spoke_elsewhere;                 // its world rank + 1
};

class Farewells {
 public:
  // `processes`: by world rank; null: unknown.
  Farewells(FarewellBoard* board, const Topology* topology, const std::vector<Process>* processes = nullptr)
      : board_(board), topology_(topology), processes_(processes) {}

  // This rank: why it goes, if it goes early.
  void say(const std::string& why);
  // Leader: what another host's rank has said.
  void hear(int world_rank, const std::string& why);

  // Of the world, ascending; those of this host.
  std::vector<int> ranks() const;
  std::vector<int> here() const;
  bool left_here(int local) const { return board_->gone[local].load(std::memory_order_acquire) != 0; }
  // What a rank has said; "" for nothing.
  std::string why(int world_rank) const;
  // Whether one of them has said something: an exception has ended it.
  bool failed(const std::vector<int>& world_ranks) const;
  // The status of an operation that fails for the farewells, with the rank that is to blame.
  Status named(const Status& status) const;
  // "rank 2 has shut down after ValueError: no such file", of any number of ranks.
  std::string text(const std::vector<int>& world_ranks) const;

 private:
  FarewellBoard* board_;
  const Topology* topology_;
  const std::vector<Process>* processes_;
};

}  // namespace ringreduce
