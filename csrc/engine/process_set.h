// The operations of one process set on this rank: from submission through agreement (the
// table of the host, the tree of hosts) to execution, one machine at a time, in the order of
// the decision log.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "collectives/machine.h"
#include "agreement/departures.h"
#include "agreement/farewells.h"
#include "agreement/host_tree.h"
#include "engine/op.h"
#include "liveness/cause.h"
#include "mailbox/mailboxes.h"
#include "agreement/op_table.h"
#include "liveness/status_page.h"
#include "shm/segment.h"

namespace ringreduce {

// After a rank has shut down, what was launched before may still finish.
constexpr int64_t kGoneGraceNs = 500'000'000;
// Where an exception has ended it the job is over, and saying so comes first.
constexpr int64_t kFailedGraceNs = 50'000'000;

// At the start of a set's segment on each host.
struct alignas(64) SetHeader {
  Bell bell;                                // the world's is the bell of the host
  FarewellBoard farewells;
  VerdictBoard verdict;                     // the world's is the one that counts
  StagingState stream;
  DepartureBoard departures;
};

struct SetConfig {
  int id = 0;
  Topology topology;
  std::shared_ptr<Segment> segment;
  Net* net = nullptr;
  const std::vector<Process>* processes = nullptr;
  PeerMemory* peers = nullptr;  // null: nobody's can be read
  bool read_any_size = false;   // however little there is to read
  Bell* bell = nullptr;   // of the host; null: this set's own (the world)
  int channel = 0;
  size_t chunk_bytes = 0, small_chunk_bytes = SIZE_MAX, fusion_bytes = 0;
  int tree_arity = 8;
  LastDone* last = nullptr;  // of the rank, over all its sets
};

class ProcessSet {
 public:
  static size_t segment_bytes(int local_size, size_t chunk_bytes);
  // The part of it that is reserved from the start: what most programs touch.
  static size_t reserved_bytes(int local_size, size_t chunk_bytes);
  explicit ProcessSet(const SetConfig& config);

  // A group is taken in as a whole or refused as a whole (a name is in flight, an argument is bad).
  Status enlist(const std::vector<OpRef>& group);
  Status post(const std::vector<OpRef>& group);
  Status advance(bool* moved);

  // A small operation without an Op (short_path.cc), where nothing else is in flight.
  bool complete(PlainCall* plain, int64_t* counts) const;
  bool quiet() const;
  bool decided() const { return table_.decision(position_); }
  Status post(const PlainCall& call, bool* posted, uint32_t* entry);
  Status take(const PlainCall& call, uint32_t entry, bool* done);
  OpRef adopt(const PlainCall& call, bool posted, uint32_t entry);

  int id() const { return config_.id; }
  const Topology& topology() const { return config_.topology; }
  Bell* bell() const { return config_.bell; }
  // Of a rank of this host, by local index; in use in the world only.
  StatusPage* status_page(int local) const { return status_page(*config_.segment, local); }
  static StatusPage* status_page(const Segment& segment, int local);
  Net* net() const { return config_.net; }
  bool idle() const { return in_flight_.empty() && !machine_ && mail_->idle(); }
  // Decided operations that this rank has not finished, or not told other hosts of: its peers rely on it.
  bool committed() const { return machine_ || decided() || (tree_ && tree_->owing()) || mail_->committed(); }
  bool sending() const { return (tree_ && tree_->sending()) || mail_->sending(); }
  // A message may arrive that only polling shows.
  bool on_net() const {
    return (machine_ && machine_->on_net()) || (tree_ && (!in_flight_.empty() || tree_->sending())) || mail_->on_net();
  }
  Mailboxes& mail() { return *mail_; }

  GpuSet& gpu() { return gpu_; }

  void fail(const Status& status);             // everything in flight
  // This rank is about to shut down, early if there is a `why`: gives up what is not agreed on, and tells the others.
  Status say_gone(const std::string& why);
  bool poll_gone(bool* moved);                 // looks for farewells when nothing else is going on
  const Farewells& farewells() const { return *farewells_; }
  VerdictBoard* verdict_board() const { return &header_->verdict; }
  // Gradient plans of the set that ranks have left. A leader listens for what other hosts say.
  const std::shared_ptr<Departures>& departures() const { return departures_; }
  Status take_departures(std::vector<Departure>* departures);
  bool leads_hosts() const { return tree_ != nullptr; }
  Status listen(bool* moved) { return tree_ ? agree(moved) : Status::ok(); }
  Missing missing(const Op& op);               // who has not submitted it
  std::string state(int64_t now);
  void warn_of_stalls(int64_t now, int64_t after_ns);  // once for each operation

 private:
  bool enlist(const OpRef& op);
  Status post(const OpRef& op, bool* posted);
  Status agree(bool* moved);
  Status run_machine(bool* moved);
  Status take_decision(bool* moved);
  Status start_group();
  void start_description(const OpRef& op);
  Status take(uint32_t entry, OpRef* op);
  static Status damaged();
  // process_set_small.cc
  Status post(const Call& call, const Key& key, const void* data, bool* posted, uint32_t* entry);
  bool sizes_come(const Call& call) const;
  void read_sizes(Op* op) const;
  int part_count(const Call& call) const;
  Status part(const Call& call, uint32_t entry, int index, Span* part) const;
  Status take_small(Op* op) const;
  Status take_small(const PlainCall& call, uint32_t entry, bool* taken) const;
  void finish(const OpRef& op, Status status);
  void keep_running();
  void finish_group();
  Status mismatch() const;
  Status take_gone();
  Status take_gone_senders(bool* moved);
  Status withdraw(Code code, const std::string& why);

  SetConfig config_;
  SetHeader* header_;
  OpTable table_;
  Channel channel_;
  GpuSet gpu_;
  std::unique_ptr<HostTree> tree_;   // leaders of sets that span hosts
  std::unique_ptr<Farewells> farewells_;
  std::shared_ptr<Departures> departures_;
  std::unique_ptr<Mailboxes> mail_;  // messages from rank to rank

  uint64_t unnamed_ = 0;
  std::unordered_map<Key, OpRef, KeyHash> in_flight_;
  std::deque<OpRef> deferred_;       // the table was full
  std::vector<OpRef> by_entry_;
  uint64_t position_ = 0;            // in the decision log

  std::unique_ptr<Machine> machine_;
  std::vector<OpRef> running_;       // the group that machine_ executes
  bool describing_ = false;          // machine_ gathers descriptions: ranks disagree
  std::string description_;
  Output descriptions_;
  int64_t gone_since_ns_ = 0;
  std::vector<int> mail_gone_;       // as far as the mailboxes' patience counts, since:
  int64_t mail_gone_ns_ = 0, mail_looked_ns_ = 0;
  int64_t moved_ns_ = 0;             // when execution last made progress
};

}  // namespace ringreduce
