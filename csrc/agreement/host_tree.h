// Agreement between hosts: the leaders of a process set's hosts form a tree (host index h,
// parent (h-1)/arity). Readiness goes up: a leader reports an operation once its own host and
// all its subtrees have it. The root decides, and decisions come down in one order for all.
//
//          root  host 0      report(A) up: host 1's ranks, and all hosts below it, have A
//          /   \             decide(A) down: everyone runs A next
//     host 1   host 2
//
// No rank sends or receives more than `arity` + 1 messages for an operation, and as many
// operations as are ready share one. The data of a small operation travels along: its partial
// results go up, its result comes down, and nothing more is exchanged.
//
// A leader forwards only operations it has submitted itself, so one with nothing pending has
// nothing to do and may sleep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "collectives/machine.h"
#include "agreement/departures.h"
#include "agreement/op_table.h"

namespace ringreduce {

// An operation as it travels between hosts. What a peer has written is looked at before it is used.
struct Record {
  enum class Type : uint32_t { kReport, kDecide, kGone, kLeft };
  Type type = Type::kReport;
  Verdict verdict = Verdict::kRun;
  Key key;                    // kLeft: a is the channel of the plan
  uint64_t signature = 0;     // kLeft: launches that are not affected
  uint32_t group = 0;         // kDecide: decisions fused from here on. kGone, kLeft: the world rank
  uint32_t inline_bytes = 0;
  char data[kSmallBytes];

  Record() = default;
  Record(const Record& other) { *this = other; }
  Record& operator=(const Record& other) {  // most carry little or nothing
    std::memcpy(static_cast<void*>(this), &other, offsetof(Record, data) + other.inline_bytes);
    return *this;
  }
  void put(const std::string& text) {
    inline_bytes = static_cast<uint32_t>(text.size());
    std::memcpy(data, text.data(), text.size());
  }
};

class HostTree {
 public:
  // How the root combines the inline data of the hosts; null result: nothing to combine.
  struct Combine {
    DType dtype = DType::kUint8;
    Reduction reduction = Reduction::kSum;
    double post = 1.0;
  };

  HostTree(const Channel& channel, int arity, size_t fusion_bytes);
  ~HostTree();

  // This host is complete: `entry` of the table. `partial`: its inline data.
  Status report(uint32_t entry, const Entry& meta, const char* partial, const Combine& combine);
  // A rank of the set has shut down; told to every host.
  void gone(int world_rank, const std::string& why);
  // A rank has left a gradient plan of the set; told to every host that has not heard of one that left earlier.
  void left(const Departure& departure);
  std::vector<Departure> take_departures() { return std::exchange(departures_, {}); }  // that others told of
  Status advance(bool* moved);

  // Decisions, in order, for this host's log; `entry` was given to report().
  struct Decided {
    uint32_t entry;
    Verdict verdict;
    uint32_t group;
    const char* result;  // inline data, valid until the next call
  };
  bool next(Decided* decided);
  const std::map<int, std::string>& gone_ranks() const { return gone_; }  // and why
  bool sending() const;
  bool owing() const;  // decisions that another host has not received: it relies on them
  std::vector<int> missing(const Key& key) const;  // hosts below of which not all have reported; of this host's not known

 private:
  static constexpr size_t kMessageRecords = 64;
  struct Link {  // to the parent or a child
    int host = -1, peer = -1, send_tag = 0;
    std::deque<Record> queue;
    std::vector<char> out, in;
    Request send, receive;
    bool decides = false;  // the message that is being sent
  };
  struct Pending {
    bool own = false, mismatch = false;
    int children = 0;                  // that have reported
    uint32_t entry = 0;
    uint64_t signature = 0, fuse = 0, bytes = 0;
    uint32_t inline_bytes = 0;
    bool inlined = false;
    Combine combine;
    std::vector<std::vector<char>> partials;  // own, then by child
    std::vector<bool> reported;
  };

  Status flush(Link& link, bool* moved);
  Status receive(size_t index, bool* moved);
  Status check(const Link& link, const Record& record) const;
  Status take(size_t index, const Record& record);
  Status take_report(size_t index, const Record& record);
  Status take_decision(size_t index, const Record& record);
  void gone(int world_rank, const std::string& why, size_t told_by);
  void left(const Departure& departure, size_t told_by);
  Pending& pending(const Key& key);
  Status try_forward(const Key& key);
  Record combined(const Key& key, Pending& pending);
  void decide();

  Channel channel_;
  int arity_;
  size_t fusion_bytes_;
  bool root_;
  std::vector<Link> links_;  // children, then the parent (if not root)
  int children_ = 0;
  std::unordered_map<Key, Pending, KeyHash> pending_;
  std::vector<Record> ready_;     // root: to be decided at the end of this advance()
  std::deque<Record> decided_;
  Record current_;
  std::map<int, std::string> gone_;
  std::unordered_map<int64_t, uint64_t> left_;  // channel of a plan -> launches
  std::vector<Departure> departures_;
};

}  // namespace ringreduce
