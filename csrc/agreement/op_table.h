// Where the ranks of one host meet: a table in shared memory of the operations that some have
// submitted, and the decision log that all of them execute in order.
//
//   post     a rank adds its submission to the entry of the operation's key. The rank that
//            completes the entry decides: on one host it appends to the log, else it queues
//            the entry for the leader, who asks the other hosts (host_tree.h).
//   log      decisions in order: run it, its result is here (small ones), or ranks disagree.
//
//   rank 0  post A ----------- post B (last: appends B)
//   rank 1  post B ----------- post A (last: appends A)        log: B A
//
// There is no decider to wait for and no rank that sends N messages: whoever is last decides.
// An operation on little data carries them in the entry (ops/small.h). An allreduce is reduced by
// the last rank, and the log says so; of an allgather every rank reads all parts. One meeting, no
// further step. A larger allgather has the sizes of its parts there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/slices.h"
#include "common/status.h"
#include "ops/small.h"
#include "ops/submission.h"
#include "ops/topology.h"
#include "shm/bell.h"
#include "shm/segment.h"
#include "shm/lock.h"

namespace ringreduce {

constexpr uint32_t kMaxPending = 8192;  // operations in flight in a set on one host
enum class Verdict : uint32_t { kRun, kInline, kMismatch };

// What a rank knows of its operation when it posts it.
struct Post {
  Key key;
  uint64_t signature = 0;
  uint64_t fuse = 0;    // operations with the same nonzero value may be fused
  uint64_t bytes = 0;   // for the fusion limit
  bool inlined = false;         // its data travel along; else perhaps their sizes
  // What this rank lays into its slot: numbers, then data.
  const int64_t* numbers = nullptr;
  size_t number_count = 0;
  const void* inline_data = nullptr;
  size_t inline_bytes = 0;
  size_t slot_bytes = 0;        // between the ranks' slots, the same on all ranks
  bool reduced = false;         // into result(), of inline data; what follows says how
  DType dtype = DType::kUint8;
  Reduction reduction = Reduction::kSum;
  Scale scale;          // for the reduction of inline data on this host
};

struct alignas(64) Entry {
  Key key;
  uint64_t signature, fuse, bytes;
  uint32_t next;      // in its hash chain or in the free list, index + 1
  uint32_t arrived;   // local ranks that have posted
  uint32_t inline_bytes;
  bool mismatch, inlined;
  bool reserved;      // its room for data, once and for all
  std::atomic<uint32_t> readers;  // local ranks that have not yet taken the decision
  uint64_t arrived_mask[kMaxLocal / 64];
};

struct Decision {
  uint32_t entry;
  Verdict verdict;
  std::atomic<uint32_t> group;  // decisions fused from here on; 0: not yet fixed
};

class OpTable {
 public:
  static size_t bytes();  // without the entries' data
  // Of the data of so many entries. All take much, but the lowest are used first.
  static size_t data_bytes(int local_size, size_t entries = kMaxPending);

  OpTable() = default;
  // At these offsets of `segment` is zeroed memory: the state of an empty table.
  OpTable(Segment* segment, size_t memory, size_t data, int local_size, int local, Bell* bell);

  // False in *posted when the table is full: try again later.
  // With `to_leader`, a complete entry is queued for the leader instead of being decided.
  Status post(const Post& post, bool to_leader, bool* posted, uint32_t* entry);

  // Decision number `position` of the log, null if it isn't taken yet.
  Decision* decision(uint64_t position) const;
  // How many decisions from `position` on are one fused group; the first to ask fixes it.
  Status group(uint64_t position, size_t fusion_bytes, uint32_t* count);
  // Every local rank calls it once it has taken the decision; the last one frees the entry.
  Status release(uint32_t entry);

  // Leader of a set that spans hosts: the next entry that is complete on this host.
  bool next_complete(uint32_t* entry);
  Status append(uint32_t entry, Verdict verdict, uint32_t group);

  Entry& entry(uint32_t index) const { return entries_[index]; }
  // An entry's room for data: the result, then the ranks' slots. Close together, since the system
  // gives memory by pages.
  char* result(uint32_t index) const { return data_ + index * room(); }
  char* slot(uint32_t index, int local, size_t slot_bytes) const { return result(index) + slot_bytes * (size_t{1} + local); }
  // The most that a rank lays there.
  size_t slot_room() const { return slot_room(locals_); }
  // Takes this rank's submission back; false in *withdrawn if all local ranks have posted.
  Status withdraw(uint32_t entry, bool* withdrawn);
  Status who_posted(uint32_t entry, std::vector<bool>* local);

 private:
  struct Header;
  static size_t slot_room(int locals) { return kSmallBytes + round_up(locals * sizeof(int64_t), kLine); }
  size_t room() const { return slot_room() * (locals_ + size_t{1}); }  // of one entry's data
  uint32_t find(const Key& key) const;
  uint32_t allocate(const Post& post);
  Status post_locked(const Post& post, bool to_leader, bool* posted, uint32_t* entry, bool* last);  // and lets go of the lock
  Status reserve(uint32_t entry, const Post& post);
  void unlink(uint32_t entry);
  void free_locked(uint32_t entry);
  void reduce_inline(uint32_t entry, const Post& post);
  void append_locked(uint32_t entry, Verdict verdict, uint32_t group);
  void complete(uint32_t entry, const Post& post, bool to_leader);

  Header* header_ = nullptr;
  Entry* entries_ = nullptr;
  Decision* log_ = nullptr;
  uint32_t* complete_ = nullptr;
  Segment* segment_ = nullptr;
  char* data_ = nullptr;
  int locals_ = 1, local_ = 0;
  uint64_t taken_complete_ = 0;
  Bell* bell_ = nullptr;
};

}  // namespace ringreduce
