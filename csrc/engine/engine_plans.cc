// The engine's gradient plans, on the CPU and on the GPU: made, launched, waited for, left and removed.
#include "engine/engine.h"

namespace ringreduce {

std::string Engine::offer_channel() {
  Lock lock(mutex_);
  return plans_.offer();
}

static Status check_channel(int64_t channel) {
  if (PlanChannel::valid(channel)) return Status::ok();
  return {Code::kInvalid, "channel: " + std::to_string(channel) + " is none for a plan"};
}

Status Engine::add_plan(int set_id, const std::vector<BucketSpec>& buckets, int op, double prescale, double postscale,
                        std::shared_ptr<Segment> segment, int64_t channel, std::shared_ptr<ArenaPlan>* plan) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  RR_TRY(check_channel(channel));
  Submission scales;
  scales.op = op;
  scales.prescale = prescale;
  scales.postscale = postscale;
  *plan = std::make_shared<ArenaPlan>(set->topology(), buckets, scales.reduction(), scales.scale(set->topology().size),
                                      std::move(segment), config_.net.get(), bell_, PlanId{set_id, channel}, set->departures());
  return plans_.add(*plan);
}

// Making one takes long, and needs nothing of the engine.
Status Engine::add_gpu_plan(int set_id, const std::vector<GpuInfo>& infos, const std::vector<GpuBucketSpec>& buckets,
                            int op, double prescale, double postscale, std::shared_ptr<ArenaPlan> host, int64_t channel,
                            std::shared_ptr<GpuPlan>* plan) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  RR_TRY(check_channel(channel));
  std::shared_ptr<Device> device;
  RR_TRY(gpu_.get(&device));
  const Topology topology = set->topology();
  Submission s;
  s.op = op;
  const GpuReduction reduction{s.reduction(), s.averages(), Scale{prescale, postscale}, topology.size};
  const PlanId id{set_id, host ? host->id().channel : channel};
  lock.unlock();
  RR_TRY(GpuPlan::make(device, infos, topology, buckets, reduction, host, id, plan));
  lock.lock();
  RR_TRY(usable());
  gpu_.add(*plan);
  Status status = host && !host->left().is_ok() ? (*plan)->leave(0, host->left()) : Status::ok();
  if (status.is_ok()) status = plans_.add(*plan);
  if (!status.is_ok()) gpu_.retire(**plan);  // the caller gets none that it could remove
  return status;
}

void Engine::set_buffer(GpuPlan& plan, int bucket, char* data) {
  Lock lock(mutex_);
  plan.set_buffer(bucket, data);
}

void Engine::set_contents(Plan& plan, std::vector<std::string> contents) {
  Lock lock(mutex_);
  plan.set_contents(std::move(contents));
}

Status Engine::launch(Plan& plan, int bucket, Plan::Where where) {
  Lock lock(mutex_);
  RR_TRY(usable());
  status_.submits();
  Status status = hear();
  if (status.is_ok() && !plan.may_launch()) return plan.left();
  if (status.is_ok()) status = plan.launch(bucket, where);
  if (status.code() == Code::kInvalid || status.code() == Code::kUnsupported) return status;
  if (!status.is_ok()) fail(status);
  // What is ready now is done now, while it is in the caches; nothing here waits.
  while (!broken() && !plan.idle() && advance())
    if (driver_.driven()) bell_->ring();
  driver_.rouse();
  return plan.lost(bucket) ? plan.left() : broken_;  // others may have completed it, and left in their next step
}

Missing Engine::missing(const Plan& plan, int bucket) {
  Lock lock(mutex_);
  Missing missing;
  if (closed_ || plan.complete(bucket)) return missing;
  missing.text = plan.missing(bucket);
  missing.ranks = plan.missing_ranks(bucket);
  return missing;
}

static WaitRecord record_of(const Plan& plan, int bucket, int64_t since_ns) {
  WaitRecord wait;
  wait.what = WaitRecord::What::kBucket;
  wait.set = plan.id().set;
  wait.since_ns = since_ns;
  wait.key[0] = static_cast<uint64_t>(plan.id().channel);
  wait.key[1] = static_cast<uint64_t>(bucket);
  wait.title.set(plan.title(bucket));
  return wait;
}

Status Engine::wait_bucket(Plan& plan, int bucket, double slice_s, bool* done, int64_t since_ns, void* stream, Waiting* waiting) {
  Lock lock(mutex_);
  Status status = hear();
  if (!status.is_ok()) fail(status);
  ++bucket_waiters_;
  block(lock, [&] { return plan.complete(bucket) || plan.lost(bucket); }, slice_s, waiting,
        [&] { return record_of(plan, bucket, since_ns ? since_ns : now_ns()); });
  --bucket_waiters_;
  *done = plan.complete(bucket) && !(plan.on_gpu() && broken());
  if (*done) return plan.join(bucket, stream);
  return plan.lost(bucket) ? plan.left() : plan.failure = liveness_.late(plan, bucket, since_ns, broken_, sets_.find(0));
}

Status Engine::leave(const PlanId& plan, const std::string& why) {
  Lock lock(mutex_);
  return say_left(plan, why);
}

Status Engine::say_left(const PlanId& plan, const std::string& why) {
  if (closing_ || broken()) return Status::ok();  // that is an error everywhere already
  bool said = false;
  const Status status = plans_.leave(plan, config_.rank, why, &said);
  if (!status.is_ok()) fail(status);
  if (!said) return Status::ok();
  if (!broken()) (void)advance();
  driver_.rouse();
  return broken_;
}

// A plan whose buckets are all complete is over on this rank; others may still be in the step, and leave it. In the
// middle of a step: why this rank has given up, or what it has waited for, is of use to the others.
void Engine::remove_plan(const std::shared_ptr<Plan>& plan) {
  Lock lock(mutex_);
  if (const int bucket = plan->first_open(); bucket >= 0)
    (void)say_left(plan->id(), plan->failure.is_ok() ? "it has closed the plan before gradient bucket " + std::to_string(bucket) +
                                                           " was complete (" + plan->missing(bucket) + ")"
                                                     : plan->failure.text());
  gpu_.retire(*plan);
  plans_.remove(plan, broken());
}

}  // namespace ringreduce
