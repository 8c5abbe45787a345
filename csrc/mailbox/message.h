// One message of this rank, on its way to another rank or from one, from the call until nobody holds its handle
// any more.
//
//   send, small   queued ──► done: copied to where its receiver finds it
//   send, large   queued ──► announced ──► moving ──► done
//   receive       queued ──► moving (a large one) ──► done
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/clock.h"
#include "common/dtype.h"
#include "common/status.h"
#include "net/net.h"

namespace ringreduce {

// What a caller asks for.
struct MessageSpec {
  static constexpr int kAnySource = -1;
  static constexpr int kMostTag = INT32_MAX;
  bool is_send = false;
  int peer = kAnySource;        // world rank: to, or from
  int tag = 0;
  DType dtype = DType::kUint8;
  char* data = nullptr;         // of a send it is read only
  size_t bytes = 0;
  std::shared_ptr<void> keep = {};  // owns the memory; see Submission::keep
};

struct Message : MessageSpec {
  enum class Phase : uint8_t { kQueued, kAnnounced, kMoving };

  uint64_t number = 0;          // among those of this rank in its set
  int set_id = 0;
  bool any = false;             // a receive that takes whatever comes with its tag
  int at = kAnySource;          // `peer`, as rank of the set. Of a receive from any source: once there is one
  Phase phase = Phase::kQueued;
  size_t moved = 0;             // bytes
  uint64_t sent_as = 0;         // of a receive: the number that its sender has given the message
  Request transfer;             // between hosts
  mutable bool awaited = false;  // by a caller that says itself what holds it up
  bool warned = false;
  size_t seen_moved = 0;        // as withdraw() saw it last, since:
  int64_t still_since_ns = 0;
  int64_t submitted_ns = 0;
  std::atomic<int64_t> limit_since_ns{0};  // what the time for it counts from: the call, or renew()
  Status status;                // written before done
  std::atomic<bool> done{false};

  void finish(Status result) {
    status = std::move(result);
    keep.reset();
    done.store(true, std::memory_order_release);
  }
  void renew() { limit_since_ns = now_ns(); }
  bool is_done() const { return done.load(std::memory_order_acquire); }

  // "recv from rank 1 (tag 3)"
  std::string title() const {
    return (is_send ? "send to " : "recv from ") + (any && at == kAnySource ? "any rank" : "rank " + std::to_string(peer)) +
           " (tag " + std::to_string(tag) + ")";
  }
};

using MessageRef = std::shared_ptr<Message>;

}  // namespace ringreduce
