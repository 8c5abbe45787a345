#include "comm.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <iterator>

#include <unistd.h>

#include "combine.h"
#include "common/clock.h"
#include "exchange.h"
#include "gpu/cuda_api.h"

extern "C" const ringreduce::CudaApi* ringreduce_cuda_api();

namespace ringreduce::doubles {

std::string describe(const Call& call) {
  static constexpr const char* kNames[] = {"?", "ncclAllReduce", "ncclBroadcast", "ncclAllGather", "ncclReduceScatter",
                                           "ncclCommSplit", "ncclSend", "ncclRecv"};
  const auto kind = static_cast<size_t>(call.kind);
  return std::string(kind < std::size(kNames) ? kNames[kind] : "?") + "(count " + std::to_string(call.count) + ", dtype " +
         std::to_string(call.dtype) + ", op " + std::to_string(call.op) + ", root or peer " + std::to_string(call.peer) + ")";
}

// --- waiting, failing, ending --------------------------------------------------------------------

template <typename Condition>
bool Comm::wait_until(Condition condition) {
  constexpr int64_t kLookAgainNs = 2'000'000;
  Bell& bell = meeting_->seat(rank).bell;
  for (;;) {
    if (aborted()) return false;
    if (condition()) return true;
    const uint32_t ticket = bell.ticket();
    bell.enter();
    const bool over = aborted() || condition();
    if (!over) bell.sleep(ticket, kLookAgainNs);
    bell.leave();
    if (over) return !aborted();
  }
}

int Comm::fail(int code, const std::string& text) {
  for (int good : {kNcclSuccess, kNcclInProgress}) state_.compare_exchange_strong(good, code);
  note(text);
  return code;
}

void Comm::note(const std::string& text) {
  std::lock_guard<std::mutex> lock(mutex_);
  last_error_ = text;
}

std::string Comm::last_error() {
  std::lock_guard<std::mutex> lock(mutex_);
  return last_error_;
}

int Comm::state() {
  if (state_ != kNcclInProgress && helper_.joinable()) helper_.join();  // it has answered
  if (rr_double_get("nccl_remote_errors") && (in_flight || state_ == kNcclInProgress)) {
    const int lost = lost_peer();
    if (lost >= 0) fail(kNcclRemoteError, "rank " + std::to_string(lost) + " closed its connection (a double of NCCL)");
  }
  return state_;
}

int Comm::lost_peer() {
  for (int peer = 0; peer < size; ++peer) {
    const Seat& seat = meeting_->seat(peer);
    const int presence = seat.presence.load(std::memory_order_acquire);
    if (presence == Seat::kAborted && peer != rank) return peer;
    if (presence == Seat::kHere && kill(seat.pid, 0) != 0 && errno == ESRCH) return peer;
  }
  return -1;
}

void Comm::leave(Seat::Presence how) {
  gone_ = how;
  meeting_->seat(rank).presence.store(how, std::memory_order_release);
  meeting_->ring_all();
  meeting_->unlink();  // if it has its name still, somebody never came
  if (helper_.joinable()) helper_.join();
}

void Comm::abort() {
  leave(Seat::kAborted);
  std::lock_guard<std::mutex> lock(running_);  // from here on nothing of it touches the user's memory
}

void Comm::destroy() {
  if (in_flight) rr_double_misuse("ncclCommDestroy with operations that have not finished: it waits for the peers then");
  leave(Seat::kDestroyed);
  // NCCL's does so for the ranks of the host.
  wait_until([this] {
    for (int peer = 0; peer < size; ++peer)
      if (meeting_->seat(peer).presence.load(std::memory_order_acquire) == Seat::kHere && lost_peer() != peer) return false;
    return true;
  });
}

int Comm::in_background(std::function<int()> body) {
  const auto answer = [this, body] {
    int working = kNcclInProgress;
    const int code = body();
    if (code == kNcclSuccess) state_.compare_exchange_strong(working, kNcclSuccess);
    else fail(code, last_error());
  };
  if (helper_.joinable()) helper_.join();  // it has answered
  state_ = kNcclInProgress;
  if (blocking) return answer(), state_.load();
  rr_double_count_up("nccl_in_progress");
  helper_ = std::thread(answer);
  return kNcclInProgress;
}

// --- meeting the others --------------------------------------------------------------------------

bool Comm::pause() {
  const int64_t until = now_ns() + rr_double_get("nccl_connect_us") * 1000;
  return wait_until([until] { return now_ns() >= until; });
}

bool Comm::open(const std::string& name) {
  name_ = name;
  meeting_ = Meeting::open(name, size);
  return meeting_ != nullptr;
}

int Comm::join() {
  Seat& seat = meeting_->seat(rank);
  seat.pid = getpid();
  ringreduce_cuda_api()->pci_bus_id(device, seat.pci, sizeof seat.pci);
  if (!pause()) return kNcclInternalError;
  int away = Seat::kAway;
  if (!seat.presence.compare_exchange_strong(away, Seat::kHere))
    return note("there are two ranks " + std::to_string(rank) + ", or it was aborted"), kNcclInvalidArgument;
  meeting_->ring_all();
  const bool met = wait_until([this] {
    for (int peer = 0; peer < size; ++peer)
      if (meeting_->seat(peer).presence.load(std::memory_order_acquire) == Seat::kAway) return false;
    return true;
  });
  meeting_->unlink();
  return met ? check_gpus() : kNcclInternalError;
}

// As NCCL does it: those who share a GPU find out, the others lose them.
int Comm::check_gpus() {
  constexpr int kSharing = 23000, kRanksOnOneGpu = 2;
  const bool shared = rr_double_get("nccl_multi_rank_gpu") && rr_double_get("nccl_version") >= kSharing;
  int code = kNcclSuccess;
  for (int i = 0; i < size; ++i) {
    int users = 0, other = -1;
    for (int j = 0; j < size; ++j) {
      if (std::strcmp(meeting_->seat(i).pci, meeting_->seat(j).pci) != 0) continue;
      ++users;
      if (j != i) other = j;
    }
    if (users <= (shared ? kRanksOnOneGpu : 1)) continue;
    if (i == rank) {
      note("Duplicate GPU detected : rank " + std::to_string(rank) + " and rank " + std::to_string(other) +
           " both on CUDA device " + meeting_->seat(i).pci);
      return kNcclInvalidUsage;
    }
    note("rank " + std::to_string(i) + " closed its connection (a double of NCCL)");
    code = kNcclRemoteError;
  }
  return code;
}

bool Comm::connect() {
  meeting_->seat(rank).connecting.store(1, std::memory_order_release);
  meeting_->ring_all();
  return wait_until([this] {
    for (int peer = 0; peer < size; ++peer)
      if (!meeting_->seat(peer).connecting.load(std::memory_order_acquire)) return false;
    return true;
  });
}

bool Comm::exchange(SplitRecord mine, std::vector<SplitRecord>* all) {
  const Call call{Kind::kSplit, nullptr, nullptr, 0, 0, 0, 0};
  all->assign(size, mine);
  Exchange exchange(*this);
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    exchange.send(peer, call, &mine, sizeof mine);
    exchange.receive(peer, call, &(*all)[peer], sizeof mine);
  }
  return exchange.run();
}

// --- on the stream -------------------------------------------------------------------------------

void Comm::run(const std::vector<Call>& calls, uint64_t turn, Disturbance disturbance) {
  const bool mine = turn == kNoTurn || wait_until([this, turn] { return turn_ == turn; });
  if (mine) {
    std::lock_guard<std::mutex> lock(running_);
    if (disturbance.error) fail(disturbance.error, "an asynchronous error that a test ordered");
    bool going = disturbance.hang ? wait_until([] { return false; }) : !aborted();
    for (const Call& call : calls)
      if (!call.is_p2p()) going = going && run_one(call);
    if (going) run_p2p(calls);
  }
  if (turn == kNoTurn) return;
  turn_ = turn + 1;
  --in_flight;
  meeting_->seat(rank).bell.ring();
}

bool Comm::run_one(const Call& call) {
  const size_t bytes = call.bytes();
  const bool scatters = call.kind == Kind::kReduceScatter, gathers = call.kind == Kind::kAllGather,
             reduces = scatters || call.kind == Kind::kAllReduce, roots = call.kind == Kind::kBroadcast;
  const char* in = static_cast<const char*>(call.in);
  char* out = static_cast<char*>(call.out);
  if (!roots || rank == call.peer) rr_double_check_memory(in, bytes * (scatters ? size : 1), describe(call).c_str());
  rr_double_check_memory(out, bytes * (gathers ? size : 1), describe(call).c_str());
  std::vector<std::vector<char>> received(size);
  std::vector<const void*> sources(size, in + (scatters ? rank * bytes : 0));
  Exchange exchange(*this);
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    if (reduces) {
      received[peer].resize(bytes);
      sources[peer] = received[peer].data();
    }
    char* to = reduces ? received[peer].data() : gathers ? out + peer * bytes : out;
    exchange.send(peer, call, in + (scatters ? peer * bytes : 0), roots && rank != call.peer ? 0 : bytes);
    exchange.receive(peer, call, to, roots && peer != call.peer ? 0 : bytes);
  }
  if (!exchange.run()) return false;
  if (reduces) combine(call.dtype, call.op, out, sources, call.count);
  else if (gathers) std::memmove(out + rank * bytes, in, bytes);
  else if (rank == call.peer) std::memmove(out, in, bytes);
  return true;
}

bool Comm::run_p2p(const std::vector<Call>& calls) {
  Exchange exchange(*this);
  for (const Call& call : calls) {
    if (!call.is_p2p()) continue;
    rr_double_check_memory(call.kind == Kind::kSend ? call.in : call.out, call.bytes(), describe(call).c_str());
    if (call.kind == Kind::kSend) exchange.send(call.peer, call, call.in, call.bytes());
    else exchange.receive(call.peer, call, call.out, call.bytes());
  }
  return exchange.run();
}

}  // namespace ringreduce::doubles
