// What a rank lets the others of its host see of itself: a page in the world's shared memory, by local index. Peers
// read it when the rank is stuck, stopped or dead; stall reports, verdicts and `ringreduce top` are made of it.
//
//   owner   writes the copy that nobody reads, then raises the version     copies | 0 | 1 |   version 7: copy 1 holds
//   reader  version, copy (version mod 2), version again: equal, or anew
//
// So a rank that was stopped in the middle of a write has left the copy before it whole. A zeroed page: nothing is known.
//
// Nothing is written on the way of a fast call. A thread is on the page once it has waited for kAnnounceS; what it waits
// for and where it came into the library stand there until its wait is over.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"

namespace ringreduce {

constexpr double kAnnounceS = 0.01;

enum class ReportKind { kStall, kTimeout };
struct Claim {  // who reports for a host
  int rank = -1;
  int64_t since_ns = 0;
};
enum class RankState : uint32_t { kUnknown, kRunning, kFailed, kClosing, kGone };

// Text in shared memory: cut where it is too long. What a peer has written may be anything.
template <size_t N>
struct PageText {
  char bytes[N];
  void set(const std::string& text);
  std::string get() const { return {bytes, strnlen(bytes, N)}; }
};

// A thread that is blocked.
struct WaitRecord {
  enum class What : uint32_t { kOperation, kMessage, kBucket };
  What what = What::kOperation;
  int32_t set = 0;               // id of the process set
  int64_t since_ns = 0;          // now_ns()
  uint64_t key[2] = {0, 0};      // of the operation; the plan's channel, the bucket
  PageText<144> title = {};      // "allreduce 'loss'", "gradient bucket 4 (layer4.weight ...)"
  PageText<144> place = {};      // where the program came into the library: "train.py:87 main"; "" while unknown
};

struct StatusRecord {
  static constexpr int kWaits = 3;
  RankState state = RankState::kUnknown;
  int32_t rank = 0, pid = 0;
  uint32_t blocked = 0;          // threads that wait; the first ones are in `waits`
  int64_t since_ns = 0;          // of the state
  WaitRecord waits[kWaits] = {};
  PageText<144> last = {};       // title of the operation that was finished last, as of the last wait
  PageText<512> failure = {};    // why it failed, or ends early
  PageText<1024> verdict = {};   // on a stall that it has reported last
  int64_t verdict_ns = 0;
};

// In shared memory. One writer; zeroed it is empty.
struct alignas(64) StatusPage {
  static constexpr size_t kWords = (sizeof(StatusRecord) + 7) / 8;
  std::atomic<uint64_t> version;
  std::atomic<uint64_t> steps;       // of optimizers
  std::atomic<uint64_t> claims[2];   // of the host's first page: who reports, and since when (claim_report)
  std::atomic<uint32_t> submitters;  // threads that have ever submitted anything
  std::atomic<uint64_t> copies[2][kWords];
};
constexpr size_t kStatusPageBytes = 8192;
static_assert(sizeof(StatusPage) <= kStatusPageBytes, "a page of status");

// What a reader gets. `version`: equal later means that nothing has been written since.
struct StatusReading : StatusRecord {
  uint64_t version = 0, steps = 0;
  uint32_t submitters = 0;
  int waits_shown() const { return blocked < kWaits ? static_cast<int>(blocked) : kWaits; }
  // Every thread of the rank that has anything to do with the others is blocked.
  bool all_blocked() const { return state == RankState::kRunning && submitters && blocked >= submitters; }
};

// False: nothing is known, or it changes faster than it can be read.
bool read_status(const StatusPage& page, StatusReading* reading);

// The owner's side; for any thread of the rank.
class OwnStatus {
 public:
  OwnStatus(StatusPage* page, int rank);

  void state(RankState state, const std::string& why = "");  // of several whys the first one counts
  void state(RankState state, const Status& why) noexcept;
  void verdict(const std::string& text);
  // Whoever comes first reports, for all of its host.
  bool claim_report(StatusPage* first, ReportKind kind, int64_t holds_ns, Claim* claim);
  void step() { page_->steps.fetch_add(1, std::memory_order_relaxed); }
  // By each thread that submits; all but its first call are a comparison.
  void submits() {
    static thread_local uint64_t counted_for = 0;
    if (counted_for == serial_) return;
    counted_for = serial_;
    page_->submitters.fetch_add(1, std::memory_order_relaxed);
  }

  // A thread is blocked from here on; returns its ticket.
  uint64_t begin_wait(const WaitRecord& wait, const std::string& last);
  void place(uint64_t ticket, const std::string& place);
  void end_wait(uint64_t ticket);

 private:
  void publish();

  StatusPage* const page_;
  const uint64_t serial_;
  std::mutex mutex_;
  StatusRecord record_;
  struct Waiter {
    uint64_t ticket;
    WaitRecord wait;
  };
  std::vector<Waiter> waiters_;  // in the order in which they began
  uint64_t tickets_ = 0;
};

// One call's wait, over all its slices: on the page from when it is announced until the call is over.
class Waiting {
 public:
  // `reports`: the caller says itself what holds it up.
  explicit Waiting(bool reports = false) : reports_(reports) {}
  ~Waiting() {
    if (status_) status_->end_wait(ticket_);
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  bool announced() const { return status_ != nullptr; }
  bool reports() const { return reports_; }
  bool placed() const { return placed_; }
  const std::string& title() const { return title_; }
  double age_s() const { return (now_ns() - since_ns_) * 1e-9; }
  void announce(OwnStatus* status, const WaitRecord& wait, const std::string& last) {
    ticket_ = status->begin_wait(wait, last);
    status_ = status;
    title_ = wait.title.get();
    since_ns_ = wait.since_ns;
  }
  void place(const std::string& place) {
    placed_ = true;
    status_->place(ticket_, place);
  }

 private:
  OwnStatus* status_ = nullptr;
  uint64_t ticket_ = 0;
  const bool reports_;
  bool placed_ = false;
  std::string title_;
  int64_t since_ns_ = 0;
};

}  // namespace ringreduce
