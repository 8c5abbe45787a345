#include "engine/transfers.h"

#include "common/clock.h"
#include "common/keep.h"

namespace ringreduce {

void Transfers::take_used(PlanChannel::Offer* offer) const {
  for (const auto& [channel, draining] : draining_) offer->used.set(PlanChannel::slot(channel));
}

bool Transfers::awaited(int64_t timeout_ns) const {
  for (const auto& [channel, draining] : draining_)
    if (now_ns() - draining.since_ns < timeout_ns) return true;
  return false;
}

void Transfers::left(const std::shared_ptr<Plan>& plan) {
  if (plan->net()) draining_[plan->id().channel] = {plan->net(), plan, now_ns()};
}

void Transfers::closed(const std::shared_ptr<Plan>& plan, bool busy) {
  const int64_t channel = plan->id().channel;
  if (busy) {
    draining_[channel] = {plan->net(), plan, 0};
    return;
  }
  for (auto other = ended_.begin(); other != ended_.end();)
    other = PlanChannel::slot(other->first) == PlanChannel::slot(channel) ? ended_.erase(other) : std::next(other);
  ended_[channel] = plan->net();
}

Status Transfers::hear(const Departure& departure, bool* known) {
  const auto ended = ended_.find(departure.channel);
  if (ended == ended_.end()) return Status::ok();
  *known = true;
  const std::shared_ptr<PlanNet> net = ended->second;
  draining_[departure.channel] = {net, nullptr, now_ns()};
  ended_.erase(ended);
  return net->leave();
}

Status Transfers::advance(bool* moved) {
  for (auto at = draining_.begin(); at != draining_.end();) {
    const auto& [net, plan, since] = at->second;
    if (plan && !plan->idle()) RR_TRY(plan->advance(moved));  // what is not affected
    if (net->left()) RR_TRY(net->drain(moved));
    at = at->second.net->drained() ? draining_.erase(at) : std::next(at);
  }
  return Status::ok();
}

void Transfers::abandon(bool lost) {
  for (auto& [channel, draining] : draining_) {
    if (!lost) draining.net->give_up();
    keep_for_good(std::make_shared<Draining>(draining));
  }
  draining_.clear();
}

}  // namespace ringreduce
