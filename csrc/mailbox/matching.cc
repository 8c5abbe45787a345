#include "mailbox/matching.h"

#include <algorithm>
#include <utility>

namespace ringreduce {

namespace {

// Takes the first of a queue, and leaves no empty ones behind.
template <typename Tags, typename Queue>
auto take_first(Tags& tags, typename Tags::iterator tag, Queue queue) {
  auto first = std::move(queue->second.front());
  queue->second.pop_front();
  if (queue->second.empty()) tag->second.erase(queue);
  if (tag->second.empty()) tags.erase(tag);
  return first;
}

}  // namespace

void Matching::post(const MessageRef& receive) { receives_[receive->tag][receive->at].push_back(receive); }

void Matching::withdraw(const Message& receive) {
  const auto tag = receives_.find(receive.tag);
  if (tag == receives_.end()) return;
  const auto queue = tag->second.find(receive.at);
  if (queue == tag->second.end()) return;
  auto& posted = queue->second;
  posted.erase(std::remove_if(posted.begin(), posted.end(), [&](const auto& one) { return one.get() == &receive; }), posted.end());
  if (posted.empty()) tag->second.erase(queue);
  if (tag->second.empty()) receives_.erase(tag);
}

MessageRef Matching::take(int source, int tag) {
  const auto of_tag = receives_.find(tag);
  if (of_tag == receives_.end()) return nullptr;
  Receives& posted = of_tag->second;
  auto queue = posted.find(source);
  const auto any = posted.find(MessageSpec::kAnySource);
  const bool earlier = any != posted.end() && (queue == posted.end() || any->second.front()->number < queue->second.front()->number);
  if (earlier) queue = any;
  return queue == posted.end() ? nullptr : take_first(receives_, of_tag, queue);
}

void Matching::keep(Arrival arrival) {
  arrival.place = place_++;
  arrivals_[arrival.packet.tag][arrival.source].push_back(std::move(arrival));
}

bool Matching::take(const Message& receive, Arrival* arrival) {
  const auto tag = arrivals_.find(receive.tag);
  if (tag == arrivals_.end()) return false;
  Arrivals& here = tag->second;
  auto queue = here.find(receive.at);
  if (receive.at == MessageSpec::kAnySource)
    queue = std::min_element(here.begin(), here.end(), [](const auto& a, const auto& b) {
      return a.second.front().place < b.second.front().place;
    });
  if (queue == here.end()) return false;
  *arrival = take_first(arrivals_, tag, queue);
  return true;
}

bool Matching::drop(int source, int tag, uint64_t number) {
  const auto of_tag = arrivals_.find(tag);
  if (of_tag == arrivals_.end()) return false;
  const auto queue = of_tag->second.find(source);
  if (queue == of_tag->second.end()) return false;
  auto& kept = queue->second;
  const auto at = std::find_if(kept.begin(), kept.end(), [number](const Arrival& one) { return one.packet.number == number; });
  if (at == kept.end()) return false;
  kept.erase(at);
  if (kept.empty()) of_tag->second.erase(queue);
  if (of_tag->second.empty()) arrivals_.erase(of_tag);
  return true;
}

std::vector<int> Matching::tags_from(int source) const {
  std::vector<int> tags;
  for (const auto& [tag, sources] : arrivals_)
    if (source == MessageSpec::kAnySource || sources.count(source)) tags.push_back(tag);
  std::sort(tags.begin(), tags.end());
  return tags;
}

}  // namespace ringreduce
