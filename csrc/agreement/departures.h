// Who has left which gradient plan of a process set: a board in the set's memory on each host.
//
// A rank whose backward pass fails says so here (Engine::leave). Ranks of its host look at the board's
// count whenever they do anything; the leader passes the word to the other hosts (host_tree.h), whose
// leaders write it on their boards:
//
//   host 0   rank 1 leaves ─► board ─► leader ──┐ tree
//   host 1                    board ◄─ leader ◄─┘      ranks 2, 3 read it, and raise
//
// A rank may leave while others are still in the step before, which it has taken. So it says how many of the
// plan's launches, counted alike on all ranks, are over on it: those go on everywhere. If several ranks leave, the
// least number holds in the end.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "shm/bell.h"
#include "shm/segment.h"
#include "shm/lock.h"

namespace ringreduce {

struct Departure {
  static constexpr size_t kText = 960;  // bytes at most; longer texts are cut
  int64_t channel = 0;                  // of the plan (plan_channel.h)
  int rank = 0;                         // of the world
  uint64_t launches = 0;                // the first ones of the plan, which are not affected
  std::string text;                     // why
  Status status() const;
};

// In shared memory; zeroed it is empty. News are few: who does not look for kMost of them has lost one.
struct DepartureBoard {
  static constexpr uint64_t kMost = 32;
  struct Entry {
    int64_t channel;
    uint64_t launches;
    uint32_t rank, bytes;
    char text[Departure::kText];
  };
  ShmLock lock;
  alignas(64) std::atomic<uint64_t> count;  // ever
  alignas(64) Entry entries[kMost];
};

class Departures {
 public:
  // `memory` holds the board; `world`: the set's ranks.
  Departures(DepartureBoard* board, std::shared_ptr<Segment> memory, std::vector<int> world, int local, Bell* bell);

  Status add(const Departure& departure);  // unless one of the plan is there that leaves out as much
  bool news() const { return board_->count.load(std::memory_order_acquire) != seen_; }
  Status take(std::vector<Departure>* departures);  // since the last call
  // For reducers, after they have read what others own: how many of the plan's launches were unaffected then.
  uint64_t unaffected(int64_t channel) const;

 private:
  Status read(uint64_t number, Departure* departure) const;
  Status locked(uint64_t since, std::vector<Departure>* departures) const;

  DepartureBoard* board_;
  std::shared_ptr<Segment> memory_;
  std::vector<int> world_;
  int local_;
  Bell* bell_;
  uint64_t seen_ = 0;
};

}  // namespace ringreduce
