// The engine's GPU operations and plans. They go to the GPU and are forgotten; what remains is to
// look now and then whether they got through (check_gpu), as a lost peer stops NCCL for good.
#include <algorithm>

#include "collectives/kinds.h"
#include "common/clock.h"
#include "common/keep.h"
#include "common/log.h"
#include "engine/engine.h"

namespace ringreduce {

Status Engine::attach_gpu(std::shared_ptr<Device> device) {
  Lock lock(mutex_);
  RR_TRY(usable());
  if (device_) return {Code::kInvalid, "a GPU is attached already"};
  device_ = std::move(device);
  for (auto& [id, set] : sets_) attach_gpu(*set);
  return Status::ok();
}

void Engine::attach_gpu(ProcessSet& set) { set.attach(device_, to_ns(config_.settings.timeout_s) / 2); }

Status Engine::submit_split(int set_id, OpRef* op) {
  *op = std::make_shared<Op>();
  (*op)->submission.kind = &kSplit;
  (*op)->submission.name = "process set " + std::to_string(set_id);
  Lock lock(mutex_);
  ProcessSet* world;
  RR_TRY(find(0, &world));
  const auto child = sets_.find(set_id);
  if (child != sets_.end()) (*op)->split_child = &child->second->gpu();
  return submit(*world, {*op});
}

Status Engine::gpu_info(int set_id, GpuInfo* info) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (!device_) return {Code::kInvalid, "no GPU is attached to this rank"};
  const Topology& topology = set->topology();
  const bool with_id = topology.rank == 0 && topology.size > 1 && set->gpu().path == GpuPath::kNccl;
  return make_info(*device_, topology.host(), with_id, info);
}

Status Engine::gpu_path(int set_id, GpuPath* path, std::string* why_host) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (!set->gpu().communicator) return {Code::kInvalid, "the process set has not run an operation on GPU tensors yet"};
  *path = set->gpu().path;
  *why_host = set->gpu().why_host;
  return Status::ok();
}

Status Engine::add_gpu_plan(int set_id, const std::vector<GpuInfo>& infos, const std::vector<GpuBucketSpec>& buckets,
                            int op, double prescale, double postscale, std::shared_ptr<Plan> host, int64_t channel,
                            std::shared_ptr<GpuPlan>* plan) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (!device_) return {Code::kInvalid, "no GPU is attached to this rank"};
  if (!PlanChannel::valid(channel)) return {Code::kInvalid, "channel: " + std::to_string(channel) + " is none for a plan"};
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<HostBuckets> through;
  if (host) {
    RR_TRY(Communicator::without_nccl(device_, &communicator));
    std::shared_ptr<void> pin;
    const Status pinned = device_->pin(host->buffer(0), host->arena_bytes(), host, &pin);
    if (!pinned.is_ok()) log(kWarning, "gradients go through host memory that is not pinned, which is slower: " + pinned.text());
    through = std::make_shared<HostBuckets>(HostBuckets{pin, [host](int i) { return host->buffer(i); },
                                                        [host](int i) { host->launch(i); },
                                                        [host](int i) { return host->complete(i); },
                                                        [host](int i) { return host->missing(i); }});
  }
  Submission s;
  s.op = op;
  const GpuReduction reduction{s.reduction(), s.averages(), Scale{prescale, postscale}, set->topology().size};
  if (!host) RR_TRY(Communicator::connect(device_, infos, set->topology(), GpuPlan::calls(buckets, reduction), &communicator));
  *plan = std::make_shared<GpuPlan>(communicator, set->topology().world, buckets, reduction, std::move(through),
                                    PlanId{set_id, host ? host->id().channel : channel});
  gpu_plans_.push_back(*plan);
  if (host && !host->left().is_ok()) return (*plan)->leave(0, host->left());
  return register_plan((*plan)->id());
}

void Engine::set_buffer(GpuPlan& plan, int bucket, char* data) {
  Lock lock(mutex_);
  plan.set_buffer(bucket, data);
}

Status Engine::launch(GpuPlan& plan, int bucket, void* stream) {
  Lock lock(mutex_);
  RR_TRY(usable());
  if (const Status status = hear(); !status.is_ok()) return fail(status), broken_;
  if (!plan.may_launch()) return plan.left();
  const Status status = plan.launch(bucket, stream);
  if (status.code() == Code::kUnsupported) return status;  // the caller's mistake: nothing has begun
  if (!status.is_ok()) fail(status);
  if (!drivers_) rouse();
  return broken_;
}

Status Engine::wait_bucket(GpuPlan& plan, int bucket, void* stream, double slice_s, bool* done, int64_t since_ns) {
  Lock lock(mutex_);
  Status status = broken_;
  if (status.is_ok()) status = hear();
  *done = plan.enqueued(bucket);
  if (!*done) {
    ++bucket_waiters_;
    status = wait_until(lock, [&] { return plan.enqueued(bucket) || plan.lost(bucket); }, slice_s);
    --bucket_waiters_;
    *done = plan.enqueued(bucket) && status.is_ok();
  }
  if (plan.lost(bucket)) {
    *done = false;
    return plan.left();
  }
  return *done && status.is_ok() ? plan.join(bucket, stream) : plan.failure = overdue(plan, bucket, since_ns, status);
}

Status Engine::join(const Op& op, void* stream) {
  if (op.gpu->device->capturing(stream))
    return {Code::kUnsupported, op.title() + " was submitted before a CUDA graph captured this stream; synchronize before the capture"};
  {
    Lock lock(mutex_);
    if (!broken_.is_ok() && !closing_) return broken_.because(op.title());
  }
  return op.gpu->device->wait_for(stream, op.gpu->finished);
}

std::vector<Communicator*> Engine::communicators() const {
  std::vector<Communicator*> all;
  for (const auto& [id, set] : sets_)
    if (set->gpu().communicator) all.push_back(set->gpu().communicator.get());
  for (const auto& plan : gpu_plans_) all.push_back(&plan->communicator());
  for (const auto& retired : retired_) all.push_back(retired.get());
  return all;
}

bool Engine::watching_gpu() const {
  if (!device_) return false;
  const auto all = communicators();
  return std::any_of(all.begin(), all.end(), [](const Communicator* one) { return one->watching(); });
}

bool Engine::pending_on_gpu() const {
  const auto all = communicators();
  return std::any_of(all.begin(), all.end(), [](const Communicator* one) { return one->pending(); });
}

void Engine::check_gpu() {
  if (!device_ || !broken_.is_ok()) return;
  Status status;
  for (auto* plans : {&gpu_plans_, &aborting_})
    for (const auto& plan : *plans)
      if (status.is_ok()) status = plan->abort_if_over();
  const auto aborted = [](const auto& plan) { return !plan->aborting(); };
  aborting_.erase(std::remove_if(aborting_.begin(), aborting_.end(), aborted), aborting_.end());
  for (Communicator* one : communicators())
    if (status.is_ok()) status = one->check(to_ns(config_.settings.timeout_s));
  if (!status.is_ok()) return fail(status);
  const auto over = [](const auto& one) { return !one->pending(); };
  retired_.erase(std::remove_if(retired_.begin(), retired_.end(), over), retired_.end());
}

}  // namespace ringreduce
