// What a process set says about its operations: how the ranks disagree, who is missing, what waits.
#include <algorithm>
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

// A leader knows which of the hosts below it have not reported; of all other hosts a rank knows nothing.
Missing ProcessSet::missing(const Op& op) {
  Missing missing;
  if (op.decided) return missing;
  if (!op.posted) return missing.text = "the table of operations in flight is full", missing;
  std::vector<bool> posted;
  if (!table_.who_posted(op.entry, &posted).is_ok()) return missing;
  for (int i = 0; i < topology().local_size(); ++i)
    if (!posted[i]) missing.ranks.push_back(channel_.world(topology().local_ranks()[i]));
  if (!missing.ranks.empty())
    missing.text = show_ranks(missing.ranks) + (missing.ranks.size() == 1 ? " has" : " have") + " not submitted it";
  std::vector<int> hosts = tree_ ? tree_->missing(op.key) : std::vector<int>();
  if (hosts.empty() && missing.ranks.empty())
    for (int host = 0; host < topology().host_count(); ++host)
      if (host != topology().host()) hosts.push_back(host);
  for (int host : hosts)
    for (int rank : topology().hosts[host]) missing.elsewhere.push_back(channel_.world(rank));
  std::sort(missing.elsewhere.begin(), missing.elsewhere.end());
  if (missing.elsewhere.size() == 1) missing.ranks.push_back(missing.elsewhere[0]);
  if (!missing.elsewhere.empty())
    missing.text += (missing.text.empty() ? "" : "; ") +
                    (missing.elsewhere.size() == 1 ? show_ranks(missing.elsewhere) + " has not submitted it"
                                                   : "some of " + show_ranks(missing.elsewhere) + " on other hosts have not submitted it");
  return missing;
}

void ProcessSet::warn_of_stalls(int64_t now, int64_t after_ns) {
  for (auto& [key, op] : in_flight_) {
    if (op->warned || op->awaited || now - op->submitted_ns < after_ns) continue;
    op->warned = true;
    const std::string why = missing(*op).text;
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
    const std::string why = missing(*op).text;
    text += "  " + op->title() + ", " + std::to_string((now - op->submitted_ns) / 1000000) + " ms: " +
            (op->decided ? "decided" : why.empty() ? "waiting" : why) + "\n";
  }
  if (machine_) text += "  running " + running_[0]->title() + ": " + machine_->where() + "\n";
  return text + mail_->state(now);
}

}  // namespace ringreduce
