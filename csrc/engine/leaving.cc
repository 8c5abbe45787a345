// How a rank leaves a gradient plan in the middle of a step, how the others hear of it (departures.h), and what
// becomes of the plan: it is open to nobody, its messages between hosts are drained, and until they are its
// tags and its memory are kept.
#include <algorithm>

#include "common/clock.h"
#include "common/keep.h"
#include "engine/engine.h"

namespace ringreduce {

namespace {
constexpr int64_t kListenNs = 1'000'000;
}

std::string Engine::offer_channel() {
  Lock lock(mutex_);
  PlanChannel::Offer offer;
  offer.serial = last_serial_;
  for (const auto& plan : plans_) offer.used.set(PlanChannel::slot(plan->id().channel));
  for (const auto& plan : gpu_plans_) offer.used.set(PlanChannel::slot(plan->id().channel));
  for (const auto& [channel, transfers] : draining_) offer.used.set(PlanChannel::slot(channel));
  return offer.text();
}

// It may have been left already, by a rank that was quicker.
Status Engine::register_plan(const PlanId& plan) {
  last_serial_ = std::max(last_serial_, PlanChannel::serial(plan.channel));
  const auto at = unclaimed_.find(plan.channel);
  if (at == unclaimed_.end()) return Status::ok();
  const Departure departure = at->second;
  unclaimed_.erase(at);
  return hear(departure);
}

Status Engine::leave(const PlanId& plan, const std::string& why) {
  Lock lock(mutex_);
  return say_left(plan, why);
}

Status Engine::say_left(const PlanId& plan, const std::string& why) {
  if (closing_ || !broken_.is_ok()) return Status::ok();  // that is an error everywhere already
  const auto set = sets_.find(plan.set);
  if (set == sets_.end()) return Status::ok();
  const auto same = [&plan](const auto& other) { return other->id().channel == plan.channel; };
  const auto on_cpu = std::find_if(plans_.begin(), plans_.end(), same);
  const auto on_gpu = std::find_if(gpu_plans_.begin(), gpu_plans_.end(), same);
  const bool left = (on_cpu != plans_.end() && !(*on_cpu)->left().is_ok()) || (on_gpu != gpu_plans_.end() && !(*on_gpu)->may_launch());
  if (left || (on_cpu == plans_.end() && on_gpu == gpu_plans_.end())) return Status::ok();
  // What NCCL was called for goes on; what goes through host memory must be complete, as the memory is the caller's again.
  const uint64_t launches = on_cpu != plans_.end() ? (*on_cpu)->completed() : (*on_gpu)->launches();
  Status status = set->second->departures()->add({plan.channel, config_.rank, launches, why});
  bool moved = false;
  if (status.is_ok()) status = advance(&moved);
  if (!status.is_ok()) fail(status);
  if (drivers_) bell_->ring();
  else rouse();
  return broken_;
}

Status Engine::hear() {
  for (auto& [id, set] : sets_) {
    if (!set->departures()->news()) continue;
    std::vector<Departure> departures;
    RR_TRY(set->take_departures(&departures));
    for (const Departure& departure : departures) RR_TRY(hear(departure));
    if (!drivers_) rouse();  // there may be hosts to tell
  }
  return Status::ok();
}

Status Engine::hear(const Departure& departure) {
  const auto same = [&departure](const auto& plan) { return plan->id().channel == departure.channel; };
  const auto plan = std::find_if(plans_.begin(), plans_.end(), same);
  const auto on_gpu = std::find_if(gpu_plans_.begin(), gpu_plans_.end(), same);
  const auto ended = ended_.find(departure.channel);
  bool known = plan != plans_.end() || on_gpu != gpu_plans_.end() || ended != ended_.end();
  if (on_gpu != gpu_plans_.end()) RR_TRY((*on_gpu)->leave(departure.launches, departure.status()));
  if (plan != plans_.end()) RR_TRY(leave(*plan, departure));
  if (ended != ended_.end()) {
    draining_[departure.channel] = {ended->second, nullptr, now_ns()};
    ended_.erase(ended);
    RR_TRY(draining_[departure.channel].net->leave());
  }
  if (!known) unclaimed_[departure.channel] = departure;
  return Status::ok();
}

Status Engine::leave(const std::shared_ptr<Plan>& plan, const Departure& departure) {
  if (plan->left().is_ok() && plan->net()) draining_[plan->id().channel] = {plan->net(), plan, now_ns()};
  return plan->leave(departure);
}

Status Engine::drain(bool* moved) {
  for (auto at = draining_.begin(); at != draining_.end();) {
    const auto& [net, plan, since] = at->second;
    if (plan && !plan->idle()) RR_TRY(plan->advance(moved));  // what is not affected
    if (net->left()) RR_TRY(net->drain(moved));
    at = at->second.net->drained() ? draining_.erase(at) : std::next(at);
  }
  return Status::ok();
}

// In the middle of a step: why this rank has given up, or what it has waited for, is of use to the others.
template <typename AnyPlan>
void Engine::say_closed(const AnyPlan& plan) {
  const int bucket = plan.first_open();
  (void)say_left(plan.id(), plan.failure.is_ok() ? "it has closed the plan before gradient bucket " + std::to_string(bucket) +
                                                       " was complete (" + plan.missing(bucket) + ")"
                                                 : plan.failure.text());
}

void Engine::remove_plan(const std::shared_ptr<GpuPlan>& plan) {
  Lock lock(mutex_);
  if (plan->left().is_ok() ? !plan->idle() : plan->aborting() && plan->may_launch()) say_closed(*plan);
  if (plan->aborting()) aborting_.push_back(plan);
  if (plan->aborting() || plan->communicator().pending()) retired_.push_back(plan->shared_communicator());
  gpu_plans_.erase(std::remove(gpu_plans_.begin(), gpu_plans_.end(), plan), gpu_plans_.end());
}

// A plan whose buckets are all complete is over on this rank. Others may still be in the step, and leave it.
void Engine::remove_plan(const std::shared_ptr<Plan>& plan) {
  Lock lock(mutex_);
  if (plan->left().is_ok() && plan->open()) say_closed(*plan);
  const auto at = std::find(plans_.begin(), plans_.end(), plan);
  if (at == plans_.end()) return;
  plans_.erase(at);
  if (!plan->net() || !plan->left().is_ok()) return;
  if (plan->net()->busy() || !broken_.is_ok()) {  // nobody drives any more; of what has failed, parts may be on their way
    draining_[plan->id().channel] = {plan->net(), plan, 0};
    return;
  }
  for (auto other = ended_.begin(); other != ended_.end();)
    other = PlanChannel::slot(other->first) == PlanChannel::slot(plan->id().channel) ? ended_.erase(other) : std::next(other);
  ended_[plan->id().channel] = plan->net();
}

// At the very end: MPI may go on reading, and writing what it cannot take back. After a loss it is not called again.
void Engine::abandon_transfers() {
  for (const auto& plan : plans_)
    if (plan->net() && plan->net()->busy()) draining_[plan->id().channel] = {plan->net(), plan, 0};
  for (auto& [channel, transfers] : draining_) {
    if (!lost_transfers_) transfers.net->give_up();
    keep_for_good(std::make_shared<Transfers>(transfers));
  }
  draining_.clear();
}

// News of other hosts come to the leaders, and nothing rings. Whoever computes need not know.
bool Engine::listening() const {
  if (!config_.net) return false;
  const bool leads = std::any_of(sets_.begin(), sets_.end(), [](const auto& set) { return set.second->leads_hosts(); });
  return leads && (bucket_waiters_ || std::any_of(plans_.begin(), plans_.end(), [](const auto& plan) { return !plan->idle(); }));
}

void Engine::listen() {
  if (!broken_.is_ok() || now_ns() - listened_ns_ < kListenNs) return;
  listened_ns_ = now_ns();
  bool moved = false;
  Status status;
  for (auto& [id, set] : sets_)
    if (status.is_ok()) status = set->listen(&moved);
  if (status.is_ok()) status = hear();
  if (!status.is_ok()) fail(status);
}

}  // namespace ringreduce
