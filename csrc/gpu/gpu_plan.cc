#include "gpu/gpu_plan.h"

#include <thread>

#include "common/clock.h"
#include "common/log.h"

namespace ringreduce {

namespace {

constexpr int64_t kCapturePatienceNs = 10'000'000'000;

Communicator::AllReduce call(const GpuBucketSpec& bucket, const NcclReduction& how) {
  return {bucket.count * how.factor, how.dtype, how.op};
}

}  // namespace

Status GpuPlan::make(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                     const std::vector<GpuBucketSpec>& buckets, const GpuReduction& reduction, std::shared_ptr<ArenaPlan> host,
                     PlanId id, std::shared_ptr<GpuPlan>* plan) {
  std::shared_ptr<Communicator> communicator;
  std::shared_ptr<void> pin = host;
  if (host) {
    RR_TRY(Communicator::without_nccl(device, &communicator));
    const Status pinned = device->pin(host->buffer(0), host->arena_bytes(), host, &pin);
    if (!pinned.is_ok()) log(kWarning, "gradients go through host memory that is not pinned, which is slower: " + pinned.text());
  } else {
    std::vector<Communicator::AllReduce> calls;
    for (const GpuBucketSpec& bucket : buckets) calls.push_back(call(bucket, reduction.of(bucket.dtype)));
    RR_TRY(Communicator::connect(device, infos, set, calls, &communicator));
  }
  *plan = std::make_shared<GpuPlan>(communicator, set.world, buckets, reduction, host, std::move(pin), id);
  return Status::ok();
}

GpuPlan::GpuPlan(std::shared_ptr<Communicator> communicator, std::vector<int> ranks, const std::vector<GpuBucketSpec>& buckets,
                 const GpuReduction& reduction, std::shared_ptr<ArenaPlan> host, std::shared_ptr<void> pin, PlanId id)
    : Plan(id, std::move(ranks), buckets.size()),
      communicator_(std::move(communicator)),
      device_(communicator_->device()),
      host_(std::move(host)),
      pin_(std::move(pin)) {
  for (const GpuBucketSpec& spec : buckets) buckets_.emplace_back(spec, reduction.of(spec.dtype));
}

Status GpuPlan::launch(int index, Where where) {
  const bool captured = device_.capturing(where.stream);
  if (captured && used_) RR_TRY(settle(kCapturePatienceNs));
  if (host_ && buckets_[index].pending) return in_flight(index);
  if (captured && host_) return {Code::kUnsupported, "a reduction through host memory cannot be captured in a CUDA graph"};
  if (captured && !used_)
    return {Code::kUnsupported, "the first step cannot be captured in a CUDA graph; run one step before the capture"};
  if (captured && !queue_.empty())
    return {Code::kUnsupported, "NCCL has not enqueued the step before, so this one cannot be captured in a CUDA graph yet"};
  count_launch(index);
  queue_.push_back({index, ordinal(index), State::kReady, captured, nullptr});
  ++buckets_[index].pending;
  buckets_[index].joined = false;
  if (captured) communicator_->keep_for_graphs();
  RR_TRY(device_.record(where.stream, &queue_.back().event));
  return settle(captured ? kCapturePatienceNs : 0);
}

// Enqueues what it can: all, once the ranks are connected. (Were the communicator made nonblocking by
// NCCL_COMM_BLOCKING=0, a thread of NCCL's would, which a capture must not miss.)
Status GpuPlan::settle(int64_t patience_ns) {
  const int64_t end = now_ns() + patience_ns;
  bool moved = false;
  RR_TRY(advance(&moved));
  while (!host_ && !queue_.empty() && now_ns() < end) {
    std::this_thread::yield();
    RR_TRY(advance(&moved));
  }
  return Status::ok();
}

Status GpuPlan::advance(bool* moved) {
  if (queue_.empty()) return Status::ok();
  Device::Scope scope(device_);
  bool turn = true;
  for (auto at = queue_.begin(); at != queue_.end();) {
    bool over = false;
    const Status status = step(&*at, turn, moved, &over);
    if (!status.is_ok()) return status.because("gradient bucket " + std::to_string(at->bucket) + " on the GPU");
    if (over) {
      --buckets_[at->bucket].pending;
      at = queue_.erase(at);
      *moved = true;
      moved_ns_ = now_ns();
    } else {
      turn = turn && at->state == State::kReducing;
      if (!host_) break;  // NCCL's calls follow each other
      ++at;
    }
  }
  return Status::ok();
}

// `turn`: all launches before this one are in the CPU's plan already.
Status GpuPlan::step(Launch* launch, bool turn, bool* moved, bool* over) {
  switch (launch->state) {
    case State::kReady: {
      bool settled = false;
      RR_TRY(communicator_->settled(&settled));
      if (!settled) return Status::ok();
      *moved = true;
      RR_TRY(host_ ? copy_in(launch) : issue(launch));
      if (launch->state != State::kSettling) return Status::ok();
      [[fallthrough]];
    }
    case State::kSettling:
      RR_TRY(communicator_->settled(over));
      return *over ? finish(launch) : Status::ok();
    case State::kCopying: {
      bool reached = false;
      RR_TRY(device_.reached(launch->event, &reached));
      if (!reached || !turn) return Status::ok();
      *moved = true;
      RR_TRY(host_->launch(launch->bucket, 0));
      launch->state = State::kReducing;
      return Status::ok();
    }
    case State::kReducing: {
      if (!host_->complete(launch->bucket)) return Status::ok();
      Bucket& bucket = buckets_[launch->bucket];
      RR_TRY(device_.copy(bucket.data, host_->buffer(launch->bucket), bucket.bytes(), stream().get()));
      *over = true;
      return finish(launch);
    }
  }
  return Status::ok();
}

Status GpuPlan::issue(Launch* launch) {
  Bucket& bucket = buckets_[launch->bucket];
  RR_TRY(device_.wait_for(stream().get(), launch->event));
  RR_TRY(scaled(bucket, {bucket.how.scale.pre, 1.0}));
  launch->state = State::kSettling;
  const auto [count, dtype, op] = call(bucket, bucket.how);
  return communicator_->all_reduce(bucket.data, bucket.data, count, dtype, op);
}

Status GpuPlan::copy_in(Launch* launch) {
  Bucket& bucket = buckets_[launch->bucket];
  RR_TRY(device_.wait_for(stream().get(), launch->event));
  RR_TRY(device_.copy(host_->buffer(launch->bucket), bucket.data, bucket.bytes(), stream().get()));
  launch->state = State::kCopying;
  RR_TRY(device_.record(stream().get(), &launch->event));
  watch(*launch, launch->event);
  return Status::ok();
}

Status GpuPlan::finish(Launch* launch) {
  Bucket& bucket = buckets_[launch->bucket];
  if (!host_) RR_TRY(scaled(bucket, {1.0, bucket.how.scale.post}));
  RR_TRY(device_.record(stream().get(), &bucket.finished));
  used_ = true;
  // What is captured has not run, and nobody can ask whether it has.
  if (!launch->captured) watch(*launch, bucket.finished);
  return Status::ok();
}

// Host memory lives until the GPU has read or written it.
void GpuPlan::watch(const Launch& launch, const Event& event) {
  communicator_->watch(event, "gradient bucket " + std::to_string(launch.bucket), pin_, launch.ordinal);
}

Status GpuPlan::scaled(Bucket& bucket, Scale scale) {
  if (scale.is_identity()) return Status::ok();
  const void* source = bucket.data;
  const DeviceReduceArgs args{bucket.data, &source, 1, bucket.count, bucket.dtype, Reduction::kSum, scale};
  return device_.check(device_.cuda().reduce(&args, stream().get()), "scaling a bucket");
}

Status GpuPlan::join(int bucket, void* stream) {
  buckets_[bucket].joined = true;
  return device_.wait_for(stream, buckets_[bucket].finished);
}

// A caller whose stream waits for all buckets already has gone on to the optimizer's step.
Status GpuPlan::drop_lost() {
  bool all_joined = true, any_lost = false;
  for (int i = 0; i < bucket_count(); ++i) {
    all_joined = all_joined && buckets_[i].joined;
    any_lost = any_lost || lost(i);
  }
  for (; !queue_.empty() && queue_.back().ordinal > unaffected_; queue_.pop_back()) --buckets_[queue_.back().bucket].pending;
  if (all_joined && any_lost)
    left_ = {left_.code(), left_.text() + "; the optimizer's step that this rank has enqueued on its GPU is not valid, so load a checkpoint"};
  return abort_if_over();
}

// A bucket whose last launch is lost may still be on the GPU with the one before, which the others count on.
// Events of what was captured cannot be asked; a graph that is replayed later meets the end of its communicator.
Status GpuPlan::abort_if_over() {
  if (!aborting() || !queue_.empty()) return Status::ok();
  if (may_launch()) return Status::ok();  // others count on this rank
  bool over = false;
  RR_TRY(communicator_->over(unaffected_, &over));
  if (!over) return Status::ok();
  aborted_ = true;
  communicator_->abort();
  return Status::ok();
}

// Also where another rank has left, but counts on launches that this one has not made, or NCCL not enqueued.
int GpuPlan::first_open() const {
  if (left_.is_ok() ? idle() : !aborting() || !counted_on()) return -1;
  return idle() ? 0 : queue_.front().bucket;
}

std::string GpuPlan::missing(int bucket) const {
  for (const Launch& launch : queue_) {
    if (launch.bucket != bucket) continue;
    switch (launch.state) {
      case State::kReady: return "waiting for the buckets before it, or for NCCL to connect the ranks";
      case State::kSettling: return "waiting for NCCL to enqueue it";
      case State::kCopying: return "copying to host memory";
      case State::kReducing: return "being reduced in host memory: " + host_->missing(bucket);
    }
  }
  return "enqueued";
}

}  // namespace ringreduce
