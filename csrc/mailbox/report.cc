// What the mailboxes say of messages that wait: for whom, and how far they are.
#include "common/log.h"
#include "mailbox/mailboxes.h"

namespace ringreduce {

namespace {

std::string show_tags(const std::vector<int>& tags) {
  constexpr size_t kMost = 8;
  std::string text = tags.size() == 1 ? "tag " : "tags ";
  for (size_t i = 0; i < std::min(tags.size(), kMost); ++i) text += (i ? ", " : "") + std::to_string(tags[i]);
  return tags.size() > kMost ? text + " and others" : text;
}

}  // namespace

std::string Mailboxes::missing(const Message& message) const {
  const std::string rank = message.at == MessageSpec::kAnySource ? "no rank" : "rank " + std::to_string(message.peer);
  const std::string tag = " with tag " + std::to_string(message.tag);
  if (message.phase == Message::Phase::kMoving)
    return rank + (message.is_send ? " has not taken all of it" : " has not sent all of it") + " (" +
           std::to_string(message.moved) + " of " + std::to_string(message.bytes) + " bytes)";
  if (message.is_send && message.phase == Message::Phase::kAnnounced)
    return rank + " has posted no recv for it" + tag;
  if (message.is_send) return rank + " has not taken the messages that were sent to it before";
  const std::vector<int> others = matching_.tags_from(message.at);
  return rank + " has sent " + (message.at == MessageSpec::kAnySource ? "anything" : "nothing") + tag +
         (others.empty() ? "" : ", but messages with " + show_tags(others) + ", which wait for a recv");
}

void Mailboxes::warn_of_stalls(int64_t now, int64_t after_ns) {
  for (auto& [number, message] : in_flight_) {
    if (message->warned || message->awaited || now - message->submitted_ns < after_ns) continue;
    message->warned = true;
    log(kWarning, message->title() + " has waited for " + std::to_string((now - message->submitted_ns) / 1'000'000'000) +
                      " s: " + missing(*message));
  }
}

std::string Mailboxes::state(int64_t now) const {
  constexpr size_t kMost = 20;
  std::string text;
  size_t shown = 0;
  for (const auto& [number, message] : in_flight_) {
    if (++shown > kMost) return text + "  and " + std::to_string(in_flight_.size() - kMost) + " more messages\n";
    text += "  " + message->title() + ", " + std::to_string((now - message->submitted_ns) / 1000000) + " ms: " + missing(*message) + "\n";
  }
  return text;
}

}  // namespace ringreduce
