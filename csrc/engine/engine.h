// The engine of one rank: what callers ask for, handed to the parts that do it.
//
//   Engine ─┬─ Driver     who advances everything, pauses, wakes
//           ├─ Sets       the process sets and their operations       (process_set.h)
//           ├─ Plans      the gradient plans, and how they are left   (buckets/plan.h)
//           ├─ GpuWatch   what is on the GPU                       (gpu/)
//           └─ Liveness   who has died, gone, is late
//
// One mutex guards all of them: every public function takes it, the parts are called with it held. Nobody blocks
// with it but for what docs/architecture.md lists under "Threads and locks".
//
// A failure of any part goes to fail(): the first is the cause, which everything in flight and all later calls get.
//
// Where there is no memory, std::bad_alloc comes out of a call; if anything had begun, the engine has failed as a
// whole then. In a thread that drives it is the engine's failure like any other.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "buckets/arena_plan.h"
#include "engine/config.h"
#include "engine/driver.h"
#include "engine/liveness.h"
#include "engine/plans.h"
#include "engine/sets.h"
#include "gpu/gpu_watch.h"
#include "liveness/status_page.h"

namespace ringreduce {

class Engine : Work {
 public:
  static Status check(const EngineConfig& config) { return Sets::check(config); }
  explicit Engine(EngineConfig config);
  ~Engine() override;

  // Fails what is not yet agreed on, finishes what is, stops the thread. Idempotent. `why`: for the peers, if it comes early.
  void close(double timeout_s, const std::string& why = "");

  Status add_set(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment);
  Status remove_set(int id);
  // Whether this rank has no operation in flight on the set; true where it has no such set.
  bool set_idle(int id);
  Status submit(int set_id, Submission submission, bool wake, OpRef* op);
  // All of them; or none, and an error.
  Status submit(int set_id, std::vector<Submission> group, bool wake, std::vector<OpRef>* ops);
  // A small one is usually done on return, with a null *op; else *op is to be waited for. `plain.root` is a rank of the
  // world. False in *plain_here: nothing was done; ask for it as a Submission.
  Status call(int set_id, PlainCall plain, bool* plain_here, OpRef* op);
  // Returns in at most `slice_s` with *done false, so that the caller can look at signals. An error once
  // `timeout_s` (< 0: the setting's) have passed since `since_ns`, by default the submission. `waiting`: of a call that
  // waits in several slices.
  Status wait(const Op& op, double timeout_s, double slice_s, bool* done, int64_t since_ns = 0, Waiting* waiting = nullptr);
  // `memory` lives until the operation is done, and longer where it has failed and transfers still touch it.
  void keep(const OpRef& op, std::shared_ptr<void> memory);

  // Messages from rank to rank (messages.cc). wait() and keep() as for operations. *message also where post() has failed,
  // if a transfer may touch its memory.
  Status post(int set_id, MessageSpec spec, bool wake, MessageRef* message);
  Status wait(const Message& message, double timeout_s, double slice_s, bool* done, int64_t since_ns = 0, Waiting* waiting = nullptr);
  void keep(const MessageRef& message, std::shared_ptr<void> memory);
  // For a caller that waits no longer: false for anything but a receive that nothing has come for.
  bool take_back(const MessageRef& message);
  // What was sent and received on the set so far; nothing where this rank has no such set.
  Mailboxes::Counts message_counts(int set_id);

  // This rank's part in agreeing on the channel of a new plan (PlanChannel::agree, with the offers of all its
  // ranks). One plan after the other: until it is made or given up, another offer would name the same.
  std::string offer_channel();
  Status add_plan(int set_id, const std::vector<BucketSpec>& buckets, int op, double prescale, double postscale,
                  std::shared_ptr<Segment> segment, int64_t channel, std::shared_ptr<ArenaPlan>* plan);
  // `infos`: of all ranks of the set. `host`: the plan that reduces where the set's path is kHost.
  Status add_gpu_plan(int set_id, const std::vector<GpuInfo>& infos, const std::vector<GpuBucketSpec>& buckets, int op,
                      double prescale, double postscale, std::shared_ptr<ArenaPlan> host, int64_t channel,
                      std::shared_ptr<GpuPlan>* plan);
  void remove_plan(const std::shared_ptr<Plan>& plan);
  void set_buffer(GpuPlan& plan, int bucket, char* data);  // where it lies from its next launch on
  void set_contents(Plan& plan, std::vector<std::string> contents);  // of its buckets, for texts
  Status launch(Plan& plan, int bucket, Plan::Where where = {});
  // Until the bucket's last launch is complete; on the GPU `stream` waits for it then. Time as Liveness::late has it.
  Status wait_bucket(Plan& plan, int bucket, double slice_s, bool* done, int64_t since_ns = 0, void* stream = nullptr,
                     Waiting* waiting = nullptr);
  // This rank's backward pass has failed: whoever waits for a bucket of the plan, or launches one, on any rank,
  // gets an error that says so. All else goes on.
  Status leave(const PlanId& plan, const std::string& why);

  // GPU (gpu/collective.h, gpu/gpu_plan.h).
  Status attach_gpu(std::shared_ptr<Device> device);
  // Makes the GPU communicator of a new set from the world's, if that has one. By all ranks of the
  // world, members or not.
  Status submit_split(int set_id, OpRef* op);
  // This rank's part in making a plan's communicator; set rank 0 makes its unique id.
  Status gpu_info(int set_id, GpuInfo* info);
  // How operations of the set run; an error before its first one.
  Status gpu_path(int set_id, GpuPath* path, std::string* why_host);
  // `stream` waits for an operation that is done. An error if the library has failed since.
  Status join(const Op& op, void* stream);

  // Who holds up what a caller waits for.
  Missing missing(const Op& op);
  Missing missing(const Message& message);
  Missing missing(const Plan& plan, int bucket);
  double stall_warning_s() const { return config_.settings.stall_warning_s; }
  // One rank of a host reports a stall: whether it is this one. Another's *claim holds for `seconds`.
  bool claim_report(ReportKind kind, double seconds, Claim* claim);
  void say_verdict(const std::string& verdict) { status_.verdict(verdict); }

  std::string state();
  bool failed();                     // nothing works any more, and it was not shut down
  Status lost();                     // which rank or host the job has lost; ok: none
  // The status pages of this host, by local index; a rank that has none yet is unknown.
  std::vector<StatusReading> statuses();
  static std::vector<StatusReading> statuses(const Segment& world, int ranks);
  void count_step() { status_.step(); }  // of an optimizer

 private:
  using Lock = Mutex::Lock;

  // For the driver.
  bool advance() override;
  void broke(const std::exception& error) override { fail(thrown(error), true); }
  bool broken() const override { return !broken_.is_ok(); }
  bool polled() const override;
  bool flush() override;
  bool unattended() const override;
  bool watching() const override { return gpu_.watching(); }
  bool listening() const override;
  bool alarmed() const override { return liveness_.alarmed(); }
  void listen() override;
  void look() override;
  void enter() override { gpu_.make_current(); }

  Status advance_all(bool* moved);
  Status hear();
  void check_gpu();
  Status thrown(const std::exception& error) const noexcept;
  Status usable() const;
  Status find(int set_id, ProcessSet** set) const;
  Status submit(ProcessSet& set, const std::vector<OpRef>& group);
  Status call_now(int set_id, PlainCall* call, int64_t* counts, bool* plain_here, bool* at_once, OpRef* op);
  Status say_left(const PlanId& plan, const std::string& why);
  // Drives until `done`, as the driver does; on the status page if it takes long. `record`: what is waited for.
  template <typename Record>
  void block(Lock& lock, const std::function<bool()>& done, double slice_s, Waiting* waiting, Record record);
  void finish(Lock& lock, double timeout_s, const std::string& why);
  void fail(const Status& status, bool is_certain = false);  // certain: it follows from nothing that other ranks know
  void end_with(const Status& status);

  EngineConfig config_;
  const Status out_of_memory_;       // made while there is some
  Mutex mutex_;                      // guards all that follows
  Sets sets_;
  OwnStatus status_;
  Plans plans_;
  GpuWatch gpu_;
  Bell* const bell_;                 // of the host
  Liveness liveness_;
  bool closing_ = false, closed_ = false;
  Status broken_;                    // why nothing works any more
  bool lost_transfers_ = false;      // messages between hosts were in flight when it broke
  int bucket_waiters_ = 0;
  int64_t listened_ns_ = 0;
  Driver driver_;
};

template <typename Record>
void Engine::block(Lock& lock, const std::function<bool()>& done, double slice_s, Waiting* waiting, Record record) {
  Waiting only;
  if (!waiting) waiting = &only;
  double left = slice_s;
  if (!waiting->announced()) {
    const double first = std::min(slice_s, kAnnounceS);
    driver_.wait_until(lock, done, first);
    left -= first;
    if (left <= 0 || done() || broken()) return;
    waiting->announce(&status_, record(), sets_.last().title());
  }
  driver_.wait_until(lock, done, left);
}

}  // namespace ringreduce
