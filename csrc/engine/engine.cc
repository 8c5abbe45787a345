#include "engine/engine.h"

#include <algorithm>

#include "common/clock.h"

namespace ringreduce {

// A report is of use while an engine hangs, too, with its mutex held.
constexpr std::chrono::milliseconds kPatienceOfReports{500};

Engine::Engine(EngineConfig config)
    : config_(std::move(config)),
      out_of_memory_(Code::kSystem, "memory ran out on rank " + std::to_string(config_.rank) +
                                        " (std::bad_alloc): what is in flight cannot be finished, and ringreduce cannot "
                                        "be used on this rank any more"),
      mutex_([this] { fail(out_of_memory_, true); }),
      sets_(config_),
      status_(sets_.world().status_page(sets_.world().topology().local()), config_.rank),
      plans_(&sets_),
      gpu_(config_.settings.timeout_s),
      bell_(sets_.world().bell()),
      liveness_(config_, sets_.world(), [bell = bell_] { bell->ring(); }),
      driver_(this, &mutex_, bell_, config_.oversubscribed, config_.settings.spin_us) {
  gpu_.add(&sets_.world().gpu());
  driver_.start();
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

Status Engine::find(int set_id, ProcessSet** set) const {
  RR_TRY(usable());
  return sets_.get(set_id, set);
}

Status Engine::add_set(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment) {
  Lock lock(mutex_);
  RR_TRY(usable());
  RR_TRY(sets_.add(id, ranks, std::move(segment)));
  gpu_.add(&sets_.find(id)->gpu());
  return Status::ok();
}

Status Engine::remove_set(int id) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(id, &set));
  if (!set->idle()) return {Code::kInvalid, "process set " + std::to_string(id) + " still has operations in flight"};
  gpu_.retire(&set->gpu());
  sets_.remove(id);
  return Status::ok();
}

bool Engine::set_idle(int id) {
  Lock lock(mutex_);
  const ProcessSet* set = sets_.find(id);
  return !set || set->idle();
}

// The event says when the tensors have their values.
static Status begin_on_gpu(const std::shared_ptr<Device>& device, Op* op) {
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
  status_.submits();
  for (const OpRef& op : *ops) {
    if (!op->submission.on_gpu) continue;
    std::shared_ptr<Device> device;
    RR_TRY(gpu_.get(&device));
    RR_TRY(begin_on_gpu(device, op.get()));
  }
  RR_TRY(submit(*set, *ops));
  // A driver between hosts may be asleep for longer than the new operation should wait.
  if (driver_.driven() && set->net()) bell_->ring();
  if (wake) driver_.wake();
  return Status::ok();
}

Status Engine::submit(ProcessSet& set, const std::vector<OpRef>& group) {
  RR_TRY(set.enlist(group));
  const Status status = set.post(group);
  if (!status.is_ok()) fail(status);
  return status;
}

Missing Engine::missing(const Op& op) {
  Lock lock(mutex_, kPatienceOfReports);
  ProcessSet* set = lock.owns_lock() && !closed_ ? sets_.find(op.set_id) : nullptr;
  return set && !op.is_done() ? set->missing(op) : Missing();
}

bool Engine::claim_report(ReportKind kind, double seconds, Claim* claim) {
  Lock lock(mutex_, kPatienceOfReports);
  if (!lock.owns_lock() || closed_) return false;
  return status_.claim_report(sets_.world().status_page(0), kind, to_ns(seconds), claim);
}

static WaitRecord record_of(const Op& op) {
  WaitRecord wait;
  wait.set = op.set_id;
  wait.since_ns = op.submitted_ns;
  wait.key[0] = op.key.a;
  wait.key[1] = op.key.b;
  wait.title.set(op.title());
  return wait;
}

Status Engine::wait(const Op& op, double timeout_s, double slice_s, bool* done, int64_t since_ns, Waiting* waiting) {
  Lock lock(mutex_);
  const int64_t limit = liveness_.limit_ns(timeout_s, since_ns ? since_ns : op.limit_since_ns.load());
  // Whoever comes late with the usual limit still looks for a moment.
  if (timeout_s >= 0) slice_s = std::clamp((limit - now_ns()) * 1e-9, 0.0, slice_s);
  op.awaited = waiting && waiting->reports();
  if (!op.is_done()) block(lock, [&op] { return op.is_done(); }, slice_s, waiting, [&op] { return record_of(op); });
  *done = op.is_done();
  if (*done) return op.status;
  return broken() ? broken_ : liveness_.late(op, limit, sets_.find(op.set_id));
}

void Engine::keep(const OpRef& op, std::shared_ptr<void> memory) {
  Lock lock(mutex_);
  if (!op->is_done() || op->kept_for_good) op->submission.keep = std::move(memory);
}

bool Engine::failed() {
  Lock lock(mutex_);
  return broken() && broken_.code() != Code::kShutdown;
}

Status Engine::lost() {
  Lock lock(mutex_);
  if (!broken() && alarmed()) end_with(liveness_.verdict());
  return liveness_.lost_process() ? liveness_.verdict() : Status::ok();
}

std::vector<StatusReading> Engine::statuses() {
  Lock lock(mutex_, kPatienceOfReports);
  if (!lock.owns_lock() || closed_) return {};
  return statuses(*config_.segment, sets_.world().topology().local_size());
}

std::vector<StatusReading> Engine::statuses(const Segment& world, int ranks) {
  std::vector<StatusReading> readings(ranks);
  for (int i = 0; i < ranks; ++i)
    if (!read_status(*ProcessSet::status_page(world, i), &readings[i])) readings[i] = StatusReading();
  return readings;
}

std::string Engine::state() {
  Lock lock(mutex_, kPatienceOfReports);
  if (!lock.owns_lock()) return "the engine is busy\n";
  if (closed_) return "shut down\n";
  return "rank " + std::to_string(config_.rank) + " of " + std::to_string(config_.size) + "\n" + sets_.state() + plans_.state();
}

}  // namespace ringreduce
