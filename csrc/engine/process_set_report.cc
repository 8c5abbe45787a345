// What a process set says about its operations: how the ranks disagree, who is missing, what waits.
#include <map>

#include "common/log.h"
#include "engine/process_set.h"

namespace ringreduce {

Status ProcessSet::mismatch() const {
  std::map<std::string, std::vector<int>> who;
  const char* at = descriptions_.data.get();
  for (int rank = 0; rank < topology().size; ++rank) {
    const auto bytes = static_cast<size_t>(descriptions_.counts[rank]);
    who[std::string(at, bytes)].push_back(channel_.world(rank));
    at += bytes;
  }
  std::string text = "the ranks disagree about " + running_[0]->subject() + ":";
  for (const auto& [what, ranks] : who) text += "\n  " + show_ranks(ranks) + " submitted " + what;
  return {Code::kMismatch, text};
}

std::string ProcessSet::missing(const Op& op) {
  if (op.decided) return "";
  if (!op.posted) return "the table of operations in flight is full";
  std::vector<int> ranks;
  std::vector<bool> posted;
  if (!table_.who_posted(op.entry, &posted).is_ok()) return "";
  for (int i = 0; i < topology().local_size(); ++i)
    if (!posted[i]) ranks.push_back(channel_.world(topology().local_ranks()[i]));
  std::string text;
  if (!ranks.empty()) text = show_ranks(ranks) + (ranks.size() == 1 ? " has" : " have") + " not submitted it";
  const std::string hosts = tree_ ? tree_->missing(op.key) : "";
  if (!hosts.empty()) text += (text.empty() ? "" : "; ") + ("ranks on hosts " + hosts + " of the set (or below) have not submitted it");
  if (text.empty() && topology().host_count() > 1) text = "ranks on another host have not submitted it";
  return text;
}

void ProcessSet::warn_of_stalls(int64_t now, int64_t after_ns) {
  for (auto& [key, op] : in_flight_) {
    if (op->warned || now - op->submitted_ns < after_ns) continue;
    op->warned = true;
    const std::string why = missing(*op);
    log(kWarning, op->title() + " has waited for " + std::to_string((now - op->submitted_ns) / 1'000'000'000) + " s" +
                      (why.empty() ? "" : ": " + why));
  }
  mail_->warn_of_stalls(now, after_ns);
}

std::string ProcessSet::state(int64_t now) {
  std::string text = "process set " + std::to_string(id()) + " of " + std::to_string(topology().size) + " ranks: " +
                     std::to_string(in_flight_.size()) + " in flight, " + std::to_string(position_) + " decisions taken\n";
  int shown = 0;
  for (const auto& [key, op] : in_flight_) {
    if (++shown > 20) break;
    const std::string why = missing(*op);
    text += "  " + op->title() + ", " + std::to_string((now - op->submitted_ns) / 1000000) + " ms: " +
            (op->decided ? "decided" : why.empty() ? "waiting" : why) + "\n";
  }
  if (machine_) text += "  running " + running_[0]->title() + ": " + machine_->where() + "\n";
  return text + mail_->state(now);
}

}  // namespace ringreduce
