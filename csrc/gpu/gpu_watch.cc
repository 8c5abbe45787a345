#include "gpu/gpu_watch.h"

#include <algorithm>

namespace ringreduce {

template <typename Items, typename Test>
static void drop(Items* items, Test test) {
  items->erase(std::remove_if(items->begin(), items->end(), test), items->end());
}

Status GpuWatch::attach(std::shared_ptr<Device> device) {
  if (device_) return {Code::kInvalid, "a GPU is attached already"};
  device_ = std::move(device);
  for (GpuSet* set : sets_) set->device = device_;
  return Status::ok();
}

// Half of the time leaves as much to go another way.
void GpuWatch::add(GpuSet* set) {
  set->device = device_;
  set->patience_ns = timeout_ns_ / 2;
  sets_.push_back(set);
}

Status GpuWatch::get(std::shared_ptr<Device>* device) const {
  *device = device_;
  return device_ ? Status::ok() : Status(Code::kInvalid, "no GPU is attached to this rank");
}

void GpuWatch::make_current() {
  if (device_.get() == current_) return;
  current_ = device_.get();
  current_->make_current();
}

void GpuWatch::retire(GpuSet* set) {
  if (set->communicator && set->communicator->pending()) retired_.push_back(set->communicator);
  drop(&sets_, [set](const GpuSet* other) { return other == set; });
}

void GpuWatch::retire(const Plan& plan) {
  const auto same = [&plan](const auto& other) { return other.get() == &plan; };
  const auto at = std::find_if(plans_.begin(), plans_.end(), same);
  if (at == plans_.end()) return;
  if ((*at)->aborting()) aborting_.push_back(*at);
  if ((*at)->aborting() || (*at)->communicator().pending()) retired_.push_back((*at)->shared_communicator());
  plans_.erase(at);
}

std::vector<Communicator*> GpuWatch::communicators() const {
  std::vector<Communicator*> all;
  for (const GpuSet* set : sets_)
    if (set->communicator) all.push_back(set->communicator.get());
  for (const auto& plan : plans_) all.push_back(&plan->communicator());
  for (const auto& retired : retired_) all.push_back(retired.get());
  return all;
}

bool GpuWatch::watching() const {
  if (!device_) return false;
  const auto all = communicators();
  return std::any_of(all.begin(), all.end(), [](const Communicator* one) { return one->watching(); });
}

bool GpuWatch::pending() const {
  const auto all = communicators();
  return std::any_of(all.begin(), all.end(), [](const Communicator* one) { return one->pending(); });
}

Status GpuWatch::check() {
  if (!device_) return Status::ok();
  for (Communicator* one : communicators()) RR_TRY(one->check(timeout_ns_));
  // After that: a communicator that turns out to have nothing left to watch is not looked at again.
  for (auto* plans : {&plans_, &aborting_})
    for (const auto& plan : *plans) RR_TRY(plan->abort_if_over());
  drop(&aborting_, [](const auto& plan) { return !plan->aborting(); });
  drop(&retired_, [](const auto& one) { return !one->pending(); });
  return Status::ok();
}

void GpuWatch::abort(bool in_order) {
  std::vector<Communicator*> stuck = communicators();
  drop(&stuck, [in_order](const Communicator* one) { return in_order && !one->pending(); });
  Communicator::abort_all(stuck);
}

void GpuWatch::clear() {
  sets_.clear();
  retired_.clear();
  plans_.clear();
  aborting_.clear();
}

}  // namespace ringreduce
