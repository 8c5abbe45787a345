// The engine of one rank: owns its process sets and plans, and advances them.
//
// One mutex guards everything below it. Whoever holds it may drive: a thread that waits for an
// operation drives until it is done; the background thread drives while operations are in
// flight and nobody waits. Neither ever blocks with the mutex held, and both let others have it.
//
//   submit -> (nobody waits: wake the background thread)
//   wait   -> lock; while not done: advance everything; nothing moved: pause (unlocked)
//
// Pausing: spin a little where there is a core for every rank, then sleep on the bell of the
// host; where messages between hosts are awaited, for a short time only, as no futex tells of
// their arrival.
//
// Where there is no memory, std::bad_alloc comes out of a call; if anything had begun, the engine has failed as a
// whole then. In a thread that drives it is the engine's failure like any other.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/settings.h"
#include "buckets/plan.h"
#include "gpu/gpu_plan.h"
#include "engine/mutex.h"
#include "engine/process_set.h"

namespace ringreduce {

struct EngineConfig {
  int rank = 0, size = 1;
  std::vector<int> host_of;          // world rank -> host
  std::shared_ptr<Segment> segment;  // the world's, of this host
  std::unique_ptr<Net> net;          // null on one host
  bool oversubscribed = false;       // more ranks than cores: never spin
  bool spare_cores = false;          // a core is free for the background thread
  std::vector<int> peer_pids;        // by local index; empty: unknown
  Settings settings;
};

class Engine {
 public:
  // What the constructor relies on; an error text for what a user can mend.
  static Status check(const EngineConfig& config);
  explicit Engine(EngineConfig config);
  ~Engine();

  // Fails what is not yet agreed on, finishes what is, stops the thread. Idempotent.
  void close(double timeout_s);

  Status add_set(int id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment);
  Status remove_set(int id);
  // Whether this rank has no operation in flight on the set; true where it has no such set.
  bool set_idle(int id);
  Status submit(int set_id, Submission submission, bool wake, OpRef* op);
  // All of them; or none, and an error.
  Status submit(int set_id, std::vector<Submission> group, bool wake, std::vector<OpRef>* ops);
  // A small one is usually done on return, with a null *op; else *op is to be waited for.
  Status allreduce(int set_id, const PlainAllreduce& plain, OpRef* op);
  // Returns in at most `slice_s` with *done false, so that the caller can look at signals. An error once
  // `timeout_s` (< 0: the setting's) have passed since `since_ns`, by default the submission.
  Status wait(const Op& op, double timeout_s, double slice_s, bool* done, int64_t since_ns = 0);
  // `memory` lives until the operation is done.
  void keep(const OpRef& op, std::shared_ptr<void> memory);

  // Messages from rank to rank (messages.cc). wait() and keep() as for operations.
  Status post(int set_id, MessageSpec spec, bool wake, MessageRef* message);
  Status wait(const Message& message, double timeout_s, double slice_s, bool* done, int64_t since_ns = 0);
  void keep(const MessageRef& message, std::shared_ptr<void> memory);
  // What was sent and received on the set so far; nothing where this rank has no such set.
  Mailboxes::Counts message_counts(int set_id);

  Status add_plan(int set_id, const std::vector<BucketSpec>& buckets, int op, double prescale, double postscale,
                  std::shared_ptr<Segment> segment, int64_t channel, std::shared_ptr<Plan>* plan);
  void remove_plan(const std::shared_ptr<Plan>& plan);
  // This rank's part in agreeing on the channel of a new plan (PlanChannel::agree, with the offers of all its
  // ranks). One plan after the other: until it is made or given up, another offer would name the same.
  std::string offer_channel();
  // This rank's backward pass has failed: whoever waits for a bucket of the plan, or launches one, on any rank,
  // gets an error that says so. All else goes on.
  Status leave(const PlanId& plan, const std::string& why);
  Status launch(Plan& plan, int bucket, int side = 0);
  // The time counts from the launch; after a time-out from `since_ns`, when the caller began to wait again.
  Status wait_bucket(Plan& plan, int bucket, double slice_s, bool* done, int64_t since_ns = 0);

  // GPU (gpu/collective.h, gpu/gpu_plan.h).
  Status attach_gpu(std::shared_ptr<Device> device);
  // Makes the GPU communicator of a new set from the world's, if that has one. By all ranks of the
  // world, members or not.
  Status submit_split(int set_id, OpRef* op);
  // This rank's part in making a plan's communicator; set rank 0 makes its unique id.
  Status gpu_info(int set_id, GpuInfo* info);
  // How operations of the set run; an error before its first one.
  Status gpu_path(int set_id, GpuPath* path, std::string* why_host);
  // `infos`: of all ranks of the set. `host`: the plan that reduces where the set's path is kHost.
  Status add_gpu_plan(int set_id, const std::vector<GpuInfo>& infos, const std::vector<GpuBucketSpec>& buckets, int op,
                      double prescale, double postscale, std::shared_ptr<Plan> host, int64_t channel,
                      std::shared_ptr<GpuPlan>* plan);
  void remove_plan(const std::shared_ptr<GpuPlan>& plan);
  void set_buffer(GpuPlan& plan, int bucket, char* data);  // where it lies from its next launch on
  Status launch(GpuPlan& plan, int bucket, void* stream);
  // Until the bucket's last launch is enqueued; then `stream` waits for it.
  Status wait_bucket(GpuPlan& plan, int bucket, void* stream, double slice_s, bool* done, int64_t since_ns = 0);
  // `stream` waits for an operation that is done. An error if the library has failed since.
  Status join(const Op& op, void* stream);

  std::string state();

 private:
  using Lock = Mutex::Lock;
  // A set's channel is its id, plans take higher ones: so both sides of a message agree.
  static constexpr int kSetChannels = PlanChannel::kFirst;

  Status thrown(const std::exception& error) const noexcept;
  Status usable() const;
  Status submit(ProcessSet& set, const std::vector<OpRef>& group);
  Status advance(bool* moved);
  Status advance_all(bool* moved);
  bool on_net() const;
  bool background_work() const;
  bool gpu_polled() const;
  std::vector<Communicator*> communicators() const;
  bool watching_gpu() const;
  bool pending_on_gpu() const;
  void check_gpu();
  void attach_gpu(ProcessSet& set);
  struct Idle {  // since something last moved
    int64_t since_ns = 0;
    int yields = 0;
  };
  static constexpr int kYields = 8;
  void pause(Lock& lock, Idle* idle, int64_t most_ns, const std::function<bool()>& done);
  void linger(const ProcessSet& set) const;
  Status wait_until(Lock& lock, const std::function<bool()>& done, double slice_s);
  void drive(Lock& lock, const std::function<bool()>& done, double slice_s);
  void run();
  void take_turn(Lock& lock, Idle* idle);
  void check_peers();
  Status say_left(const PlanId& plan, const std::string& why);
  template <typename AnyPlan>
  void say_closed(const AnyPlan& plan);
  Status register_plan(const PlanId& plan);
  Status hear();
  Status hear(const Departure& departure);
  Status leave(const std::shared_ptr<Plan>& plan, const Departure& departure);
  Status drain(bool* moved);
  void abandon_transfers();
  bool listening() const;
  void listen();
  template <typename AnyPlan>
  Status overdue(const AnyPlan& plan, int bucket, int64_t since_ns, Status status);
  template <typename AnyPlan>
  Status look_for_farewells(const AnyPlan& plan);
  void rouse();
  void fail(const Status& status);
  Status find(int set_id, ProcessSet** set);

  EngineConfig config_;
  const Status out_of_memory_;       // made while there is some
  Mutex mutex_;
  std::condition_variable wake_;     // the background thread, when nothing is in flight
  std::map<int, std::unique_ptr<ProcessSet>> sets_;
  std::vector<std::shared_ptr<Plan>> plans_;
  // Of left and of closed plans (leaving.cc), by channel.
  struct Transfers {
    std::shared_ptr<PlanNet> net;
    std::shared_ptr<Plan> plan;      // whose memory they read and write; null: no more
    int64_t since_ns;
  };
  std::map<int64_t, Transfers> draining_;
  std::map<int64_t, std::shared_ptr<PlanNet>> ended_;
  std::map<int64_t, Departure> unclaimed_;  // of plans that this rank has not made yet
  int64_t last_serial_ = 0;
  int bucket_waiters_ = 0;
  int64_t listened_ns_ = 0;
  std::shared_ptr<Device> device_;   // null without a GPU
  std::vector<std::shared_ptr<GpuPlan>> gpu_plans_;
  std::vector<std::shared_ptr<GpuPlan>> aborting_;      // removed, left, and not yet aborted
  std::vector<std::shared_ptr<Communicator>> retired_;  // of removed sets and plans: still in use on the GPU
  Bell* bell_ = nullptr;
  int drivers_ = 0;                  // threads in wait
  bool asleep_ = false;              // the background thread, for no limited time
  bool closing_ = false, closed_ = false;
  Status broken_;                    // why nothing works any more
  bool lost_transfers_ = false;      // messages between hosts were in flight when it broke
  std::vector<int> peer_fds_;        // pidfds by local index
  int64_t peers_checked_ns_ = 0;
  int64_t bucket_timed_out_ns_ = 0;  // last
  const Device* current_ = nullptr;  // the background thread's
  std::thread thread_;
};

}  // namespace ringreduce
