// The process sets that this rank is in, by id. Set 0 is the world and always there.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "buckets/plan_channel.h"
#include "engine/config.h"
#include "engine/process_set.h"
#include "shm/peer_memory.h"

namespace ringreduce {

class Sets {
 public:
  explicit Sets(const EngineConfig& config);
  // What the constructor relies on; an error text for what a user can mend.
  static Status check(const EngineConfig& config);

  const LastDone& last() const { return last_; }
  ProcessSet& world() const { return *sets_.at(0); }
  ProcessSet* find(int id) const;              // null: this rank has no such set
  Status get(int id, ProcessSet** set) const;  // or an error
  Status add(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment);
  void remove(int id) { sets_.erase(id); }
  template <typename Body>
  void each(Body body) const {
    for (const auto& [id, set] : sets_) body(*set);
  }

  Status advance(bool* moved);
  bool busy() const { return any([](ProcessSet& set) { return !set.idle() || set.sending(); }); }
  bool on_net() const { return any([](ProcessSet& set) { return set.on_net(); }); }
  bool committed() const { return any([](ProcessSet& set) { return set.committed(); }); }
  bool sending() const { return any([](ProcessSet& set) { return set.sending(); }); }
  bool leads_hosts() const { return any([](ProcessSet& set) { return set.leads_hosts(); }); }
  Status listen();
  Status say_gone(const std::string& why);
  std::string state() const;
  void keep_for_good();                        // others may still write into their memory
  void clear() { sets_.clear(); }

 private:
  // A set's channel is its id, plans take higher ones: so both sides of a message agree.
  static constexpr int kMost = PlanChannel::kFirst;
  template <typename Test>
  bool any(Test test) const {
    for (const auto& [id, set] : sets_)
      if (test(*set)) return true;
    return false;
  }
  SetConfig make(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment);

  const EngineConfig& config_;
  LastDone last_;
  std::unique_ptr<PeerMemory> peers_;  // null: nobody's can be read
  std::map<int, std::unique_ptr<ProcessSet>> sets_;
};

}  // namespace ringreduce
