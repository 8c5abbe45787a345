#include "engine/engine.h"

#include <algorithm>
#include <numeric>

#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/keep.h"
#include "common/log.h"
#include "common/show.h"

namespace ringreduce {

namespace {

constexpr int64_t kMillisecond = 1'000'000;
constexpr double kFarewellS = 0.2;
constexpr double kDestroyS = 2;
constexpr int64_t kGoneGraceNs = 500 * kMillisecond;  // what was launched before may still finish

}  // namespace

static Topology make_world(const EngineConfig& config) {
  std::vector<int> ranks(config.size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return make_topology(config.rank, ranks, config.host_of);
}

Status Engine::check(const EngineConfig& config) {
  const Topology world = make_world(config);
  const int locals = world.local_size();
  if (locals > kMaxLocal)
    return {Code::kUnsupported, std::to_string(locals) + " ranks on one host; at most " + std::to_string(kMaxLocal) + " are supported"};
  const size_t least = kLine * config.size;
  const size_t chunk = config.settings.chunk(world.host_count(), world.rails);
  if (chunk < least)
    return {Code::kInvalid, "RINGREDUCE_CHUNK_BYTES is " + std::to_string(chunk) + "; " +
                                std::to_string(config.size) + " ranks need at least " + std::to_string(least)};
  const size_t needed = ProcessSet::segment_bytes(locals, chunk);
  if (config.segment->size() >= needed) return Status::ok();
  return {Code::kInvalid, "the segment of the host has " + std::to_string(config.segment->size()) + " bytes, " +
                              std::to_string(needed) + " are needed (settings differ between ranks)"};
}

Engine::Engine(EngineConfig config)
    : config_(std::move(config)),
      out_of_memory_(Code::kSystem, "memory ran out on rank " + std::to_string(config_.rank) +
                                        " (std::bad_alloc): what is in flight cannot be finished, and ringreduce cannot "
                                        "be used on this rank any more"),
      mutex_([this] { fail(out_of_memory_); }) {
  SetConfig set;
  set.topology = make_world(config_);
  set.segment = config_.segment;
  set.net = config_.net.get();
  set.chunk_bytes = config_.settings.chunk(set.topology.host_count(), set.topology.rails);
  set.fusion_bytes = config_.settings.fusion_bytes;
  set.tree_arity = config_.settings.tree_arity;
  sets_[0] = std::make_unique<ProcessSet>(set);
  bell_ = sets_[0]->bell();
  for (int pid : config_.peer_pids)
    peer_fds_.push_back(pid == getpid() ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() { close(0); }

Status Engine::thrown(const std::exception& error) const noexcept {
  if (dynamic_cast<const std::bad_alloc*>(&error)) return out_of_memory_;
  try {
    return {Code::kSystem, "ringreduce has failed on rank " + std::to_string(config_.rank) + ": " + error.what()};
  } catch (const std::exception&) {
    return out_of_memory_;
  }
}

Status Engine::usable() const {
  if (closing_) return {Code::kShutdown, "ringreduce was shut down on this rank"};
  return broken_;
}

Status Engine::find(int set_id, ProcessSet** set) {
  RR_TRY(usable());
  const auto at = sets_.find(set_id);
  if (at == sets_.end())
    return {Code::kInvalid, "process set " + std::to_string(set_id) + " does not exist or this rank is not in it"};
  *set = at->second.get();
  return Status::ok();
}

Status Engine::add_set(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment) {
  if (id >= kSetChannels)
    return {Code::kInvalid, "process set " + std::to_string(id) + ": at most " + std::to_string(kSetChannels - 1) +
                                " may exist at a time"};
  Lock lock(mutex_);
  RR_TRY(usable());
  SetConfig set;
  set.id = id;
  set.topology = make_topology(config_.rank, ranks, config_.host_of);
  set.segment = std::move(segment);
  set.net = config_.net.get();
  set.bell = bell_;
  set.channel = id;
  set.chunk_bytes = config_.settings.chunk(set.topology.host_count(), set.topology.rails);
  set.fusion_bytes = config_.settings.fusion_bytes;
  set.tree_arity = config_.settings.tree_arity;
  sets_[id] = std::make_unique<ProcessSet>(set);
  if (device_) attach_gpu(*sets_[id]);
  return Status::ok();
}

Status Engine::remove_set(int id) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(id, &set));
  if (!set->idle()) return {Code::kInvalid, "process set " + std::to_string(id) + " still has operations in flight"};
  if (set->gpu().communicator && set->gpu().communicator->pending()) retired_.push_back(set->gpu().communicator);
  sets_.erase(id);
  return Status::ok();
}

bool Engine::set_idle(int id) {
  Lock lock(mutex_);
  const auto at = sets_.find(id);
  return at == sets_.end() || at->second->idle();
}

// The event says when the tensors have their values.
static Status begin_on_gpu(const std::shared_ptr<Device>& device, Op* op) {
  if (!device) return {Code::kInvalid, "no GPU is attached to this rank"};
  void* stream = op->submission.stream;
  if (device->capturing(stream))
    return {Code::kUnsupported, op->title() + " cannot be captured in a CUDA graph, since the ranks agree on it by messages; "
                                              "capture steps of DistributedOptimizer, or call it outside of the capture"};
  op->gpu = std::make_shared<GpuOp>();
  op->gpu->device = device;
  return device->record(stream, &op->gpu->ready);
}

Status Engine::submit(int set_id, Submission submission, bool wake, OpRef* op) {
  std::vector<Submission> group;
  group.push_back(std::move(submission));
  std::vector<OpRef> ops;
  RR_TRY(submit(set_id, std::move(group), wake, &ops));
  *op = std::move(ops[0]);
  return Status::ok();
}

Status Engine::submit(int set_id, std::vector<Submission> group, bool wake, std::vector<OpRef>* ops) {
  for (Submission& submission : group) {
    ops->push_back(std::make_shared<Op>());
    ops->back()->submission = std::move(submission);
  }
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  for (const OpRef& op : *ops)
    if (op->submission.on_gpu) RR_TRY(begin_on_gpu(device_, op.get()));
  RR_TRY(submit(*set, *ops));
  // A driver between hosts may be asleep for longer than the new operation should wait.
  if (drivers_ && set->net()) bell_->ring();
  if (wake && !drivers_) wake_.notify_one();
  return Status::ok();
}

Status Engine::submit(ProcessSet& set, const std::vector<OpRef>& group) {
  RR_TRY(set.enlist(group));
  const Status status = set.post(group);
  if (!status.is_ok()) fail(status);
  return status;
}

Status Engine::wait(const Op& op, double timeout_s, double slice_s, bool* done, int64_t since_ns) {
  Lock lock(mutex_);
  if (!since_ns) since_ns = op.limit_since_ns;
  const int64_t limit = since_ns + to_ns(timeout_s < 0 ? config_.settings.timeout_s : timeout_s);
  // Whoever comes late with the usual limit still looks for a moment.
  if (timeout_s >= 0) slice_s = std::clamp((limit - now_ns()) * 1e-9, 0.0, slice_s);
  if (!op.is_done()) (void)wait_until(lock, [&op] { return op.is_done(); }, slice_s);
  *done = op.is_done();
  if (*done) return op.status;
  if (!broken_.is_ok()) return broken_;
  if (now_ns() < limit) return Status::ok();
  const auto set = sets_.find(op.set_id);
  const std::string missing = set == sets_.end() ? "" : set->second->missing(op);
  return {Code::kTimeout, op.title() + " has not completed in " + show_seconds(now_ns() - op.submitted_ns) + ": " +
                              (missing.empty() ? "all ranks have submitted it, but it does not finish" : missing)};
}

void Engine::keep(const OpRef& op, std::shared_ptr<void> memory) {
  Lock lock(mutex_);
  if (!op->is_done()) op->submission.keep = std::move(memory);
}

Status Engine::add_plan(int set_id, const std::vector<BucketSpec>& buckets, int op, double prescale, double postscale,
                        std::shared_ptr<Segment> segment, int64_t channel, std::shared_ptr<Plan>* plan) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (!PlanChannel::valid(channel)) return {Code::kInvalid, "channel: " + std::to_string(channel) + " is none for a plan"};
  Submission scales;
  scales.op = op;
  scales.prescale = prescale;
  scales.postscale = postscale;
  *plan = std::make_shared<Plan>(set->topology(), buckets, scales.reduction(), scales.scale(set->topology().size),
                                 std::move(segment), config_.net.get(), bell_, PlanId{set_id, channel}, set->departures());
  plans_.push_back(*plan);
  return register_plan((*plan)->id());
}

Status Engine::launch(Plan& plan, int bucket, int side) {
  Lock lock(mutex_);
  RR_TRY(usable());
  if (const Status status = hear(); !status.is_ok()) return fail(status), broken_;
  RR_TRY(plan.left());
  if (!plan.complete(bucket))
    return {Code::kInvalid, "gradient bucket " + std::to_string(bucket) + " is in flight (" + plan.missing(bucket) +
                                "); wait for it before it is launched again"};
  plan.launch(bucket, side);
  // What is ready now is done now, while it is in the caches; nothing here waits.
  for (bool moved = true; moved && broken_.is_ok();) {
    moved = false;
    const Status status = advance(&moved);
    if (!status.is_ok()) fail(status);
    if (moved && drivers_) bell_->ring();
  }
  if (!drivers_ && background_work()) wake_.notify_one();
  return plan.lost(bucket) ? plan.left() : broken_;  // others may have completed it, and left in their next step
}

Status Engine::wait_bucket(Plan& plan, int bucket, double slice_s, bool* done, int64_t since_ns) {
  Lock lock(mutex_);
  ++bucket_waiters_;
  Status status = wait_until(lock, [&] { return plan.complete(bucket) || plan.lost(bucket); }, slice_s);
  --bucket_waiters_;
  *done = plan.complete(bucket);
  if (*done) return Status::ok();
  return plan.lost(bucket) ? plan.left() : plan.failure = overdue(plan, bucket, since_ns, status);
}

// An error if a bucket that is not done will not be, or has taken too long.
template <typename AnyPlan>
Status Engine::overdue(const AnyPlan& plan, int bucket, int64_t since_ns, Status status) {
  if (status.is_ok()) status = look_for_farewells(plan);
  // All buckets that were in flight at the last time-out have as much time again.
  const int64_t launched = plan.launched_ns(bucket), now = now_ns();
  const int64_t since = launched > bucket_timed_out_ns_ ? launched : std::max(launched, since_ns);
  if (status.is_ok() && now - since < to_ns(config_.settings.timeout_s)) return Status::ok();
  if (status.is_ok()) {
    bucket_timed_out_ns_ = now;
    status = {Code::kTimeout, "no progress for " + show_seconds(now - launched)};
  }
  return status.because("gradient bucket " + std::to_string(bucket) + " cannot complete (" + plan.missing(bucket) + ")");
}
template Status Engine::overdue(const Plan&, int, int64_t, Status);
template Status Engine::overdue(const GpuPlan&, int, int64_t, Status);

// A plan has no messages of its own to say that a rank has shut down; the world's set has.
template <typename AnyPlan>
Status Engine::look_for_farewells(const AnyPlan& plan) {
  bool moved = false;
  if (!sets_[0]->poll_gone(&moved) || now_ns() - plan.moved_ns() < kGoneGraceNs) return Status::ok();
  for (int rank : sets_[0]->gone_ranks())
    if (plan.includes(rank)) return {Code::kPeerLost, "rank " + std::to_string(rank) + " has shut down"};
  return Status::ok();
}

void Engine::close(double timeout_s) {
  Lock lock(mutex_);
  if (closed_) return;
  closing_ = true;
  // A rank that failed says no goodbye: its death is then noticed as one.
  for (auto& [id, set] : sets_) {
    if (!broken_.is_ok()) break;
    const Status status = set->say_gone();
    if (!status.is_ok()) fail(status);
  }
  // The peers count on what has been agreed: finish it. Farewells may wait for a peer that no
  // longer receives, so they get little time.
  const auto committed = [this] {
    return std::any_of(sets_.begin(), sets_.end(), [](const auto& set) { return set.second->committed(); }) ||
           std::any_of(plans_.begin(), plans_.end(), [](const auto& plan) { return plan->committed(); });
  };
  const auto sending = [this] {
    return std::any_of(sets_.begin(), sets_.end(), [](const auto& set) { return set.second->sending(); });
  };
  (void)wait_until(lock, [&] { return !committed(); }, timeout_s);
  (void)wait_until(lock, [&] { return !sending() && draining_.empty(); }, std::min(timeout_s, kFarewellS));
  // What is on the GPU is finished there: a communicator is destroyed without loss, or aborted.
  (void)wait_until(lock, [&] { return check_gpu(), !pending_on_gpu(); }, timeout_s);
  const bool unfinished = config_.net && committed();  // by peers that are late, or gone
  fail({Code::kShutdown, "ringreduce was shut down on this rank while the operation was in flight"});
  closed_ = true;
  drop_kept_results();
  wake_.notify_all();
  bell_->ring();
  lock.unlock();
  thread_.join();
  lock.lock();
  while (drivers_) {  // threads that still wait leave with the error
    bell_->ring();
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
  for (int fd : peer_fds_)
    if (fd >= 0) ::close(fd);
  abandon_transfers();
  if (unfinished) keep_for_good(std::make_shared<decltype(sets_)>(std::move(sets_)));
  if (lost_transfers_) {  // MPI may still write into their memory
    keep_for_good(std::make_shared<decltype(plans_)>(std::move(plans_)));
    keep_for_good(std::make_shared<decltype(sets_)>(std::move(sets_)));
    keep_for_good(std::shared_ptr<Net>(std::move(config_.net)));
  }
  retired_.clear();
  gpu_plans_.clear();
  aborting_.clear();
  plans_.clear();
  sets_.clear();
  lock.unlock();
  Communicator::wait_for_ended(kDestroyS);  // the other ranks shut down, too, but some may not
  lock.lock();
  config_.net.reset();  // its receives are taken back while the communicator lives
}

std::string Engine::state() {
  Lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return "the engine is busy\n";
  if (closed_) return "shut down\n";
  std::string text = "rank " + std::to_string(config_.rank) + " of " + std::to_string(config_.size) + "\n";
  for (auto& [id, set] : sets_) text += set->state(now_ns());
  for (auto& plan : plans_)
    for (size_t i = 0; i < plan->bucket_count(); ++i)
      if (!plan->complete(static_cast<int>(i))) text += "  gradient bucket: " + plan->missing(static_cast<int>(i)) + "\n";
  for (auto& plan : gpu_plans_)
    for (size_t i = 0; i < plan->bucket_count(); ++i)
      if (!plan->enqueued(static_cast<int>(i)))
        text += "  gradient bucket " + std::to_string(i) + " on the GPU: " + plan->missing(static_cast<int>(i)) + "\n";
  return text;
}

}  // namespace ringreduce
