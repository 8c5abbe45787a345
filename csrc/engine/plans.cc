#include "engine/plans.h"

#include "common/keep.h"

namespace ringreduce {

std::string Plans::offer() const {
  PlanChannel::Offer offer;
  offer.serial = last_serial_;
  for (const auto& plan : plans_) offer.used.set(PlanChannel::slot(plan->id().channel));
  transfers_.take_used(&offer);
  return offer.text();
}

Status Plans::add(std::shared_ptr<Plan> plan) {
  const int64_t channel = plan->id().channel;
  plans_.push_back(std::move(plan));
  last_serial_ = std::max(last_serial_, PlanChannel::serial(channel));
  const auto at = unclaimed_.find(channel);
  if (at == unclaimed_.end()) return Status::ok();
  const Departure departure = at->second;
  unclaimed_.erase(at);
  return hear(departure);
}

void Plans::remove(const std::shared_ptr<Plan>& plan, bool broken) {
  const auto at = std::find(plans_.begin(), plans_.end(), plan);
  if (at == plans_.end()) return;
  plans_.erase(at);
  if (plan->net() && plan->left().is_ok()) transfers_.closed(plan, plan->net()->busy() || broken);
}

Status Plans::advance(bool* moved) {
  for (auto& plan : plans_)
    if (!plan->idle() && (plan->left().is_ok() || !plan->net())) RR_TRY(plan->advance(moved));  // else transfers_ does
  return transfers_.advance(moved);
}

std::string Plans::state() const {
  std::string text;
  for (const auto& plan : plans_)
    for (int i = 0; i < plan->bucket_count(); ++i)
      if (!plan->complete(i))
        text += "  gradient bucket " + std::to_string(i) + (plan->on_gpu() ? " on the GPU: " : ": ") + plan->missing(i) + "\n";
  return text;
}

Status Plans::leave(const PlanId& id, int rank, const std::string& why, bool* said) {
  ProcessSet* set = sets_.find(id.set);
  const auto same = [&id](const auto& plan) { return plan->id().channel == id.channel; };
  const auto plan = std::find_if(plans_.begin(), plans_.end(), same);
  if (!set || plan == plans_.end() || !(*plan)->counted_on()) return Status::ok();
  *said = true;
  return set->departures()->add({id.channel, rank, (*plan)->over(), why});
}

Status Plans::hear(bool* news) {
  Status status;
  sets_.each([&](ProcessSet& set) {
    if (!status.is_ok() || !set.departures()->news()) return;
    *news = true;
    std::vector<Departure> departures;
    status = set.take_departures(&departures);
    for (const Departure& departure : departures)
      if (status.is_ok()) status = hear(departure);
  });
  return status;
}

Status Plans::hear(const Departure& departure) {
  bool known = false;
  for (const auto& plan : plans_) {
    if (plan->id().channel != departure.channel) continue;
    known = true;
    if (plan->left().is_ok()) transfers_.left(plan);
    RR_TRY(plan->leave(departure.launches, departure.status()));
  }
  RR_TRY(transfers_.hear(departure, &known));
  if (!known) unclaimed_[departure.channel] = departure;
  return Status::ok();
}

void Plans::abandon(bool lost) {
  for (const auto& plan : plans_)
    if (plan->net() && plan->net()->busy()) transfers_.closed(plan, true);
  transfers_.abandon(lost);
  if (lost) keep_for_good(std::make_shared<decltype(plans_)>(std::move(plans_)));
}

}  // namespace ringreduce
