#include "gpu/communicator.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "gpu/nccl_threads.h"

namespace ringreduce {

namespace {

constexpr double kAbortPatienceS = 10;

constexpr auto kLookAgain = std::chrono::microseconds(100);

// For what may go on after its communicator is gone.
NcclThreads& threads() {
  static NcclThreads& all = *new NcclThreads;
  return all;
}

Status nccl_status(const NcclApi& nccl, NcclComm comm, int code, const char* what) {
  if (code == kNcclSuccess) return Status::ok();
  const char* last = nccl.get_last_error(comm);
  std::string text = std::string(what) + " failed: " + nccl.get_error_string(code);
  if (last && *last) text += std::string(": ") + last;
  return {Code::kSystem, text};
}

}  // namespace

// What the thread of a connect() and the communicator have in common.
struct Communicator::Making {
  std::shared_ptr<Device> device;
  GpuStream stream;
  NcclUniqueId id;
  int size, rank;
  std::vector<AllReduce> reductions;

  std::mutex mutex;
  bool done = false, abandoned = false;
  NcclComm comm = nullptr;
  Status status;

  const NcclApi& nccl() const { return device->library().nccl; }

  void run() {
    Status outcome = make();
    {
      std::lock_guard<std::mutex> lock(mutex);
      status = std::move(outcome);
      done = true;
      if (!abandoned) return;
    }
    if (comm) nccl().comm_abort(comm);  // not before: NCCL could be in the middle of a call
  }

  bool wanted() {
    std::lock_guard<std::mutex> lock(mutex);
    return !abandoned;
  }

  Status make() {
    NcclConfig config;
    config.blocking = 1;
    RR_TRY(answer(nccl().comm_init_rank_config(&comm, size, id, rank, &config), "ncclCommInitRankConfig"));
    size_t most = 0;
    for (const AllReduce& one : reductions) most = std::max(most, one.count * nccl_size(one.dtype));
    std::shared_ptr<char> memory;  // freed behind what reduces it
    RR_TRY(device->allocate(most, stream, &memory));
    for (const AllReduce& one : reductions)
      RR_TRY(answer(nccl().all_reduce(memory.get(), memory.get(), one.count, one.dtype, one.op, comm, stream.get()), "ncclAllReduce"));
    return Status::ok();
  }

  // NCCL_COMM_BLOCKING=0 makes every communicator a nonblocking one, which can be given up in the middle of a call.
  Status answer(int code, const char* what) {
    while (code == kNcclInProgress && wanted()) {
      std::this_thread::sleep_for(kLookAgain);
      const int asked = nccl().comm_get_async_error(comm, &code);
      if (asked != kNcclSuccess) code = asked;
    }
    return nccl_status(nccl(), comm, code, what);
  }

  // Whatever comes of it is not wanted any more.
  static void abandon(const std::shared_ptr<Making>& making) {
    std::lock_guard<std::mutex> lock(making->mutex);
    making->abandoned = true;
    if (making->done && making->comm) threads().start(making->device, [making] { making->nccl().comm_abort(making->comm); });
  }
};

Status Communicator::start(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                           std::shared_ptr<Communicator>* communicator) {
  std::shared_ptr<Communicator> made(new Communicator(device, set.world));
  RR_TRY(device->create_stream(&made->stream_));
  *communicator = made;
  if (made->size_ == 1) return Status::ok();
  Device::Scope scope(*device);
  NcclConfig config;
  return made->result(made->nccl().comm_init_rank_config(&made->comm_, made->size_, infos[0].id, set.rank, &config),
                      "ncclCommInitRankConfig");
}

Status Communicator::connect(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                             const std::vector<AllReduce>& reductions, std::shared_ptr<Communicator>* communicator) {
  std::shared_ptr<Communicator> made(new Communicator(device, set.world));
  RR_TRY(device->create_stream(&made->stream_));
  *communicator = made;
  if (made->size_ == 1) return Status::ok();
  made->in_progress_ = true;
  made->making_ = std::make_shared<Making>();
  Making& making = *made->making_;
  making.device = device;
  making.stream = made->stream_;
  making.id = infos[0].id;
  making.size = made->size_;
  making.rank = set.rank;
  making.reductions = reductions;
  threads().start(device, [making = made->making_] { making->run(); });
  return Status::ok();
}

Status Communicator::without_nccl(std::shared_ptr<Device> device, std::shared_ptr<Communicator>* communicator) {
  std::shared_ptr<Communicator> made(new Communicator(device, {}));
  RR_TRY(device->create_stream(&made->stream_));
  *communicator = std::move(made);
  return Status::ok();
}

Status Communicator::split(const Topology* set, std::shared_ptr<Communicator>* child) {
  std::shared_ptr<Communicator> made(new Communicator(device_, set ? set->world : std::vector<int>{}));
  if (set) RR_TRY(device_->create_stream(&made->stream_));
  *child = made;  // also outside: NCCL writes to it later
  Device::Scope scope(*device_);
  NcclConfig config;
  RR_TRY(result(nccl().comm_split(comm_, set ? 0 : NcclApi::kNoColor, set ? set->rank : 0, &made->comm_, &config), "ncclCommSplit"));
  // NCCL says success here while it has only begun; what it has come to is this communicator's state.
  in_progress_ = true;
  made->in_progress_ = set != nullptr;
  return Status::ok();
}

Communicator::~Communicator() {
  if (making_) Making::abandon(making_);
  if (!comm_ || aborted_ || captured_) return;
  // With work in flight, destroying would wait for peers that may not come.
  const auto end = pending() ? nccl().comm_abort : nccl().comm_destroy;
  threads().start(device_, [comm = comm_, end] { end(comm); });
}

void Communicator::wait_for_ended(double most_s) { threads().wait(most_s); }

std::string Communicator::ranks() const {
  return world_.size() > 1 ? " (" + show_ranks(world_) + ")" : "";
}

// kNcclInProgress is success so far.
Status Communicator::result(int code, const char* what) {
  in_progress_ = code == kNcclInProgress;
  return in_progress_ ? Status::ok() : nccl_status(nccl(), comm_, code, what);
}

Status Communicator::settled(bool* settled) {
  *settled = !in_progress_;
  if (!in_progress_) return failed_;
  if (making_) return made(settled);
  Device::Scope scope(*device_);
  int state = kNcclSuccess;
  RR_TRY(result(nccl().comm_get_async_error(comm_, &state), "ncclCommGetAsyncError"));
  RR_TRY(result(state, "NCCL"));
  *settled = !in_progress_;
  return Status::ok();
}

Status Communicator::made(bool* settled) {
  const std::shared_ptr<Making> making = making_;
  std::lock_guard<std::mutex> lock(making->mutex);
  *settled = making->done;
  if (!making->done) return Status::ok();
  making_.reset();
  comm_ = making->comm;
  in_progress_ = false;
  return failed_ = making->status;
}

Status Communicator::late(int64_t patience_ns) const {
  if (now_ns() - begun_ns_ < patience_ns) return Status::ok();
  return {Code::kTimeout, "NCCL has not connected the ranks in " + std::to_string(patience_ns / 1'000'000'000) + " s"};
}

// One rank: every collective is a copy, if that.
Status Communicator::all_reduce(const void* in, void* out, size_t count, NcclDType dtype, NcclRedOp op) {
  if (size_ == 1) return device_->copy(out, in, count * nccl_size(dtype), stream_.get());
  return result(nccl().all_reduce(in, out, count, dtype, op, comm_, stream_.get()), "ncclAllReduce");
}

Status Communicator::reduce_scatter(const void* in, void* out, size_t count, NcclDType dtype, NcclRedOp op) {
  if (size_ == 1) return device_->copy(out, in, count * nccl_size(dtype), stream_.get());
  return result(nccl().reduce_scatter(in, out, count, dtype, op, comm_, stream_.get()), "ncclReduceScatter");
}

Status Communicator::all_gather(const void* in, void* out, size_t bytes) {
  if (size_ == 1) return device_->copy(out, in, bytes, stream_.get());
  return result(nccl().all_gather(in, out, bytes, kNcclUint8, comm_, stream_.get()), "ncclAllGather");
}

Status Communicator::broadcast(const void* in, void* out, size_t bytes, int root) {
  if (size_ == 1) return device_->copy(out, in, bytes, stream_.get());
  return result(nccl().broadcast(in, out, bytes, kNcclUint8, root, comm_, stream_.get()), "ncclBroadcast");
}

// One operation for NCCL, whatever `body` calls.
template <typename Body>
Status Communicator::grouped(const char* what, Body body) {
  int first = nccl().group_start();
  auto call = [&first](int code) {
    if (first == kNcclSuccess && code != kNcclInProgress) first = code;
  };
  body(call);
  const int end = nccl().group_end();
  return result(first == kNcclSuccess ? end : first, what);
}

Status Communicator::all_gather_uneven(const void* in, char* out, const std::vector<int64_t>& counts) {
  if (size_ == 1) return device_->copy(out, in, counts[0], stream_.get());
  return grouped("allgather by ncclBroadcast", [&](auto call) {
    char* at = out;
    for (int root = 0; root < size_; ++root) {
      if (counts[root]) call(nccl().broadcast(in, at, counts[root], kNcclUint8, root, comm_, stream_.get()));
      at += counts[root];
    }
  });
}

Status Communicator::all_to_all(const char* in, const std::vector<int64_t>& send, char* out,
                                const std::vector<int64_t>& receive) {
  if (size_ == 1) return device_->copy(out, in, send[0], stream_.get());
  return grouped("alltoall by ncclSend and ncclRecv", [&](auto call) {
    for (int peer = 0; peer < size_; ++peer) {
      if (send[peer]) call(nccl().send(in, send[peer], kNcclUint8, peer, comm_, stream_.get()));
      if (receive[peer]) call(nccl().recv(out, receive[peer], kNcclUint8, peer, comm_, stream_.get()));
      in += send[peer];
      out += receive[peer];
    }
  });
}

void Communicator::watch(const Event& finished, std::string title, std::shared_ptr<void> keep, uint64_t serial) {
  watched_.push_back({finished, std::move(title), std::move(keep), now_ns(), serial});
}

Status Communicator::over(uint64_t serial, bool* over) {
  RR_TRY(drop_finished());
  *over = watched_.empty() || watched_.front().serial > serial;
  return Status::ok();
}

Status Communicator::drop_finished() {
  Device::Scope scope(*device_);
  while (!watched_.empty()) {
    bool reached = false;
    const Status status = device_->reached(watched_.front().finished, &reached);
    if (!status.is_ok()) return status.because(watched_.front().title + ranks());
    if (!reached) break;
    watched_.pop_front();
  }
  return Status::ok();
}

Status Communicator::check(int64_t timeout_ns) {
  Device::Scope scope(*device_);
  RR_TRY(drop_finished());
  if (aborted_ || (!pending() && !captured_)) return Status::ok();
  int state = kNcclSuccess;
  const std::string title = (watched_.empty() ? "a communicator of NCCL" : watched_.front().title) + ranks();
  if (comm_) {
    const bool in_progress = in_progress_;
    const int asked = nccl().comm_get_async_error(comm_, &state);
    const Status status = result(asked == kNcclSuccess ? state : asked, "NCCL");
    in_progress_ = in_progress;  // for settled() to find out
    if (!status.is_ok()) return status.because(title);
  }
  if (watched_.empty() || now_ns() - watched_.front().since_ns < timeout_ns) return Status::ok();
  std::string text = title + " has not finished on the GPU in " + std::to_string(timeout_ns / 1'000'000'000) +
                     " s; a rank may be lost, or the GPU is stopped by other work";
  const char* last = comm_ ? nccl().get_last_error(comm_) : nullptr;
  if (last && *last) text += std::string("; NCCL's last error: ") + last;
  return {Code::kSystem, text};  // no kTimeout: there is nothing left to wait for
}

void Communicator::abort_all(const std::vector<Communicator*>& communicators) {
  NcclThreads aborts;
  for (Communicator* one : communicators) {
    if (one->making_) Making::abandon(std::exchange(one->making_, nullptr));
    const bool live = one->comm_ && !one->aborted_;
    one->aborted_ = true;
    one->in_progress_ = false;
    one->failed_ = {Code::kSystem, "its communicator was aborted"};
    if (live) aborts.start(one->device_, [comm = one->comm_, abort = one->nccl().comm_abort] { abort(comm); });
  }
  aborts.wait(kAbortPatienceS);  // a graph that lives may keep NCCL for ever
}

}  // namespace ringreduce
