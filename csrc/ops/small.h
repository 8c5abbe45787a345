// Operations on little data are over when the ranks have agreed on them: the data travel along.
//
// Each rank lays its data into a slot of its own, behind numbers where others could not know how much is for whom:
//
//   allreduce, reduce, reducescatter   the input. The last rank to come reduces all slots into the result
//   broadcast                          the root's input; the others lay nothing
//   allgather                          its size, the input
//   alltoall, gather, scatter          what is for each rank, the input
//
// Then every rank takes the parts that are for it: of the result, or of the slots, in rank order.
#pragma once

#include "common/slices.h"
#include "ops/submission.h"

namespace ringreduce {

constexpr size_t kSmallBytes = 4096;

// Whether it goes this way where all ranks' data do. Between hosts only what has been reduced travels.
inline bool is_small(const Call& call, bool one_host) {
  if (call.on_gpu || call.kind->small == Kind::Small::kAsLarge) return false;
  if (call.kind->small == Kind::Small::kNothing) return true;
  return call.bytes <= kSmallBytes && (call.kind->small == Kind::Small::kReduced || one_host);
}

// Numbers in front of the data.
inline size_t numbers(const Call& call) {
  if (call.kind->small != Kind::Small::kGathered || call.kind->alike) return 0;
  return call.kind->counts == Kind::Counts::kOwn ? call.ranks : 1;
}

// How much data rank `rank` of the set lays.
inline size_t laid(const Call& call, int rank) {
  const bool by_root = call.kind->small == Kind::Small::kGathered && call.kind->alike;
  return call.kind->small == Kind::Small::kNothing || (by_root && rank != call.root) ? 0 : call.bytes;
}

// What rank `rank` takes of the result.
inline Range of_result(const Call& call, int rank) {
  if (call.kind->counts != Kind::Counts::kAgreed) return {0, call.bytes};
  size_t begin = 0;
  for (int i = 0; i < rank; ++i) begin += static_cast<size_t>(call.counts[i]);
  return {begin, begin + static_cast<size_t>(call.counts[rank])};
}

// What rank `rank` takes of the data in the slot of `source`, where these are in front of it. False for numbers that cannot be.
inline bool of_slot(const Call& call, const int64_t* numbers_there, int source, int rank, Range* part) {
  *part = {};
  if (call.kind->alike) {
    if (source == call.root) part->end = call.bytes;
    return true;
  }
  const int last = call.kind->counts == Kind::Counts::kOwn ? rank : 0;
  for (int i = 0; i <= last; ++i) {
    const int64_t bytes = numbers_there[i];
    part->begin = part->end;
    if (bytes < 0 || bytes > static_cast<int64_t>(kSmallBytes - part->begin)) return false;
    part->end += static_cast<size_t>(bytes);
  }
  return true;
}

}  // namespace ringreduce
