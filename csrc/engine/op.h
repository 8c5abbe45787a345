// One operation of this rank, from submission until nobody holds its handle any more.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "ops/output.h"
#include "common/clock.h"
#include "common/status.h"
#include "ops/submission.h"
#include "gpu/collective.h"

namespace ringreduce {

// "allreduce 'loss'" or "allreduce (unnamed operation 12 of process set 0)".
inline std::string number_of(uint64_t number, int set_id) {
  return "unnamed operation " + std::to_string(number) + " of process set " + std::to_string(set_id);
}
inline std::string title_of(const Kind& kind, std::string_view name, uint64_t number, int set_id) {
  const std::string what = kind.name;
  return name.empty() ? what + " (" + number_of(number, set_id) + ")" : what + " '" + std::string(name) + "'";
}

// What a rank has finished last. Written after each operation, so it is cheap: what would be its title is only kept.
class LastDone {
 public:
  void set(const Kind& kind, std::string_view name, uint64_t number, int set_id) {
    kind_ = &kind;
    number_ = number;
    set_id_ = set_id;
    bytes_ = static_cast<uint8_t>(std::min(name.size(), sizeof name_));
    std::memcpy(name_, name.data(), bytes_);
  }
  std::string title() const { return kind_ ? title_of(*kind_, {name_, bytes_}, number_, set_id_) : ""; }

 private:
  const Kind* kind_ = nullptr;
  uint64_t number_ = 0;
  int set_id_ = 0;
  uint8_t bytes_ = 0;
  char name_[103];
};

struct Op {
  Submission submission;
  Key key;
  int set_id = 0;
  int64_t submitted_ns = 0;
  std::atomic<int64_t> limit_since_ns{0};  // what the time for it counts from: the submission, or renew()
  uint32_t entry = 0;     // in the table of its set, once posted
  mutable bool awaited = false;  // by a caller that says itself what holds it up
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

  std::string title() const { return title_of(*submission.kind, submission.name, key.b, set_id); }
  // The same on all ranks, also where unnamed ones of different kinds have met.
  std::string subject() const { return submission.name.empty() ? number() : title(); }
  std::string number() const { return number_of(key.b, set_id); }
};

using OpRef = std::shared_ptr<Op>;

}  // namespace ringreduce
