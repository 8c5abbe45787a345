// The number of a gradient plan, which its ranks agree on when they make it:
//
//   serial << 10 | slot     serial   no plan that one of these ranks has been in had it before, so news of an
//                                    old plan cannot be taken for news of a new one
//                           slot     its range of tags for messages between hosts. Free on all of these ranks:
//                                    a left plan keeps it on each until none of its messages can come any more
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <vector>

#include "collectives/machine.h"

namespace ringreduce {

// Of a plan, for the ranks of its process set.
struct PlanId {
  int set = 0;
  int64_t channel = 0;
};

struct PlanChannel {
  static constexpr int kSlotBits = 10;
  static constexpr int kFirst = 128;                                       // below: process sets, by their ids
  static constexpr int kEnd = (Net::kMaxTag + 1) / Channel::kTags;
  static constexpr int64_t kMostSerial = int64_t{1} << 50;

  static int slot(int64_t channel) { return static_cast<int>(channel & ((1 << kSlotBits) - 1)); }
  static int64_t serial(int64_t channel) { return channel >> kSlotBits; }
  static bool valid(int64_t channel) { return channel >= 0 && slot(channel) >= kFirst && slot(channel) < kEnd; }

  // What a rank contributes: the last serial it has seen, and which slots are in use.
  struct Offer {
    int64_t serial = 0;
    std::bitset<kEnd> used;
    std::string text() const;
    static Status read(const std::string& text, Offer* offer);
  };
  // The same on all ranks, from the offers of all, by rank of the set. Any number `start`, the same on all ranks, says
  // where to look first: agreements of different plans at a time that have different ones seldom meet.
  static Status agree(const std::vector<std::string>& offers, uint64_t start, int64_t* channel);
};

}  // namespace ringreduce
