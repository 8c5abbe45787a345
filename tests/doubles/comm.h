// A communicator of the NCCL double, as one rank has it, and what it does on the stream.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "gpu/nccl_api.h"
#include "meeting.h"

namespace ringreduce::doubles {

enum class Kind : uint32_t { kAllReduce = 1, kBroadcast, kAllGather, kReduceScatter, kSplit, kSend, kReceive };

// One call, as the user made it.
struct Call {
  Kind kind;
  const void* in;
  void* out;
  uint64_t count;
  int dtype;
  int op;    // of reductions
  int peer;  // root, or the other rank
  size_t bytes() const { return count * nccl_size(static_cast<NcclDType>(dtype)); }
  bool is_p2p() const { return kind == Kind::kSend || kind == Kind::kReceive; }
};

std::string describe(const Call& call);

// What a test ordered for a call: it hangs, perhaps with an asynchronous error.
struct Disturbance {
  bool hang = false;
  int error = 0;
};

class Comm {
 public:
  static constexpr uint64_t kNoTurn = ~uint64_t{0};  // of a captured call, which runs when its graph does

  const int rank, size, device;
  const bool blocking;

  Comm(int rank, int size, int device, bool blocking) : rank(rank), size(size), device(device), blocking(blocking) {}

  // The making: open() at the call, join() on the helper thread.
  bool open(const std::string& name);
  int join();
  // For as long as a call is to be "in progress". false: aborted.
  bool pause();
  // Waits until all ranks are at their first collective. false: aborted.
  bool connect();
  // Colors and keys of all ranks, by rank. false: aborted.
  struct SplitRecord {
    int color, key;
  };
  bool exchange(SplitRecord mine, std::vector<SplitRecord>* all);

  // Calls that belong together, run on the stream's thread when it is their turn.
  void run(const std::vector<Call>& calls, uint64_t turn, Disturbance disturbance);

  // Runs body() on a thread; the communicator is "in progress" until it has answered.
  int in_background(std::function<int()> body);

  int state();                                  // what ncclCommGetAsyncError says
  int fail(int code, const std::string& text);  // the first one stays
  void note(const std::string& text);           // for ncclGetLastError only
  std::string last_error();
  void abort();    // never waits for peers
  void destroy();
  bool aborted() const { return gone_ == Seat::kAborted; }
  bool gone() const { return gone_ != 0; }

  const std::string& name() const { return name_; }
  bool connected = false, connected_p2p = false;  // used by callers only, as are the next two
  uint64_t next_turn = 0;
  int splits = 0;
  std::atomic<int> in_flight{0};

 private:
  friend class Exchange;
  void leave(Seat::Presence how);
  int check_gpus();
  int lost_peer();
  bool run_one(const Call& call);
  bool run_p2p(const std::vector<Call>& calls);
  template <typename Condition>
  bool wait_until(Condition condition);  // false: aborted

  std::shared_ptr<Meeting> meeting_;
  std::string name_;
  std::atomic<int> state_{kNcclSuccess}, gone_{0};
  std::atomic<uint64_t> turn_{0};
  std::mutex running_;  // held while something uses the user's memory
  std::mutex mutex_;    // of last_error_
  std::string last_error_;
  std::thread helper_;
};

}  // namespace ringreduce::doubles
