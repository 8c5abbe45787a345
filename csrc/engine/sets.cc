#include "engine/sets.h"

#include <numeric>

#include "common/clock.h"
#include "common/keep.h"

namespace ringreduce {

static std::vector<int> all_ranks(const EngineConfig& config) {
  std::vector<int> ranks(config.size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

Status Sets::check(const EngineConfig& config) {
  const Topology world = make_topology(config.rank, all_ranks(config), config.host_of);
  const int locals = world.local_size();
  if (locals > kMaxLocal)
    return {Code::kUnsupported, std::to_string(locals) + " ranks on one host; at most " + std::to_string(kMaxLocal) + " are supported"};
  const size_t least = kLine * config.size;
  const size_t chunk = config.settings.chunk(world.host_count(), world.rails);
  if (chunk < least)
    return {Code::kInvalid, "RINGREDUCE_CHUNK_BYTES is " + std::to_string(chunk) + "; " +
                                std::to_string(config.size) + " ranks need at least " + std::to_string(least)};
  const size_t needed = ProcessSet::segment_bytes(locals, chunk);
  if (config.segment->size() >= needed) return Status::ok();
  return {Code::kInvalid, "the segment of the host has " + std::to_string(config.segment->size()) + " bytes, " +
                              std::to_string(needed) + " are needed (settings differ between ranks)"};
}

Sets::Sets(const EngineConfig& config) : config_(config) {
  if (config.single_copy) {
    const Topology world = make_topology(config.rank, all_ranks(config), config.host_of);
    peers_ = std::make_unique<PeerMemory>(world.local_ranks(), config.peer_pids);
  }
  sets_[0] = std::make_unique<ProcessSet>(make(0, all_ranks(config), config.segment));
}

SetConfig Sets::make(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment) {
  SetConfig set;
  set.id = set.channel = id;
  set.topology = make_topology(config_.rank, ranks, config_.host_of);
  set.segment = std::move(segment);
  set.net = config_.net.get();
  set.processes = &config_.processes;
  set.peers = peers_.get();
  set.read_any_size = config_.settings.single_copy == "always";
  set.bell = id ? world().bell() : nullptr;
  set.chunk_bytes = config_.settings.chunk(set.topology.host_count(), set.topology.rails);
  if (set.topology.host_count() == 1 && !config_.settings.chunk_bytes) set.small_chunk_bytes = kSmallChunk;
  set.fusion_bytes = config_.settings.fusion_bytes;
  set.tree_arity = config_.settings.tree_arity;
  set.last = &last_;
  return set;
}

ProcessSet* Sets::find(int id) const {
  const auto at = sets_.find(id);
  return at == sets_.end() ? nullptr : at->second.get();
}

Status Sets::get(int id, ProcessSet** set) const {
  *set = find(id);
  if (*set) return Status::ok();
  return {Code::kInvalid, "process set " + std::to_string(id) + " does not exist or this rank is not in it"};
}

Status Sets::add(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment) {
  if (id >= kMost)
    return {Code::kInvalid, "process set " + std::to_string(id) + ": at most " + std::to_string(kMost - 1) + " may exist at a time"};
  sets_[id] = std::make_unique<ProcessSet>(make(id, ranks, std::move(segment)));
  return Status::ok();
}

Status Sets::advance(bool* moved) {
  for (auto& [id, set] : sets_)
    if (!set->idle() || set->sending() || set->on_net()) RR_TRY(set->advance(moved));
  return Status::ok();
}

Status Sets::listen() {
  bool moved = false;
  for (auto& [id, set] : sets_) RR_TRY(set->listen(&moved));
  return Status::ok();
}

Status Sets::say_gone(const std::string& why) {
  for (auto& [id, set] : sets_) RR_TRY(set->say_gone(why));
  return Status::ok();
}

std::string Sets::state() const {
  std::string text;
  each([&text](ProcessSet& set) { text += set.state(now_ns()); });
  return text;
}

void Sets::keep_for_good() { ringreduce::keep_for_good(std::make_shared<decltype(sets_)>(std::move(sets_))); }

}  // namespace ringreduce
