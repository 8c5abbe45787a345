// One operation of this rank, from submission until nobody holds its handle any more.
#pragma once

#include <atomic>
#include <memory>

#include "ops/output.h"
#include "common/clock.h"
#include "common/status.h"
#include "ops/submission.h"
#include "gpu/collective.h"

namespace ringreduce {

struct Op {
  Submission submission;
  Key key;
  int set_id = 0;
  int64_t submitted_ns = 0;
  std::atomic<int64_t> limit_since_ns{0};  // what the time for it counts from: the submission, or renew()
  uint32_t entry = 0;     // in the table of its set, once posted
  bool posted = false, decided = false, warned = false;
  bool kept_for_good = false;  // transfers in flight may still touch its memory
  Output output;
  GpuSet* split_child = nullptr;
  std::shared_ptr<GpuOp> gpu;  // null on the CPU. Done then means: enqueued
  Status status;          // written before done
  std::atomic<bool> done{false};

  void finish(Status result) {
    status = std::move(result);
    submission.keep.reset();
    done.store(true, std::memory_order_release);
  }
  // Whoever has seen a time-out and waits again gives it as much time as at first.
  void renew() { limit_since_ns = now_ns(); }
  bool is_done() const { return done.load(std::memory_order_acquire); }
  // On the GPU: it has run there, too.
  bool is_finished() const {
    bool reached = true;
    if (is_done() && gpu && gpu->finished) (void)gpu->device->reached(gpu->finished, &reached);
    return is_done() && reached;
  }

  // "allreduce 'loss'" or "allreduce (unnamed operation 12 of process set 0)".
  std::string title() const {
    const std::string kind = submission.kind->name;
    return submission.name.empty() ? kind + " (" + number() + ")" : kind + " '" + submission.name + "'";
  }
  // The same on all ranks, also where unnamed ones of different kinds have met.
  std::string subject() const { return submission.name.empty() ? number() : title(); }
  std::string number() const {
    return "unnamed operation " + std::to_string(key.b) + " of process set " + std::to_string(set_id);
  }
};

using OpRef = std::shared_ptr<Op>;

}  // namespace ringreduce
