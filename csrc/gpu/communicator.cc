#include "gpu/communicator.h"

#include "gpu/endings.h"

namespace ringreduce {

namespace {

constexpr double kAbortPatienceS = 10;

Endings& destroying() {
  static Endings& all = *new Endings;
  return all;
}

}  // namespace

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
  if (!comm_ || aborted_ || captured_) return;
  // With work in flight, destroying would wait for peers that may not come.
  destroying().start(device_, comm_, pending() ? nccl().comm_abort : nccl().comm_destroy);
}

void Communicator::wait_for_ended(double most_s) { destroying().wait(most_s); }

std::string Communicator::ranks() const {
  return world_.size() > 1 ? " (" + show_ranks(world_) + ")" : "";
}

// kNcclInProgress is success so far.
Status Communicator::result(int code, const char* what) {
  in_progress_ = code == kNcclInProgress;
  if (code == kNcclSuccess || in_progress_) return Status::ok();
  const char* last = nccl().get_last_error(comm_);
  std::string text = std::string(what) + " failed: " + nccl().get_error_string(code);
  if (last && *last) text += std::string(": ") + last;
  return {Code::kSystem, text};
}

Status Communicator::settled(bool* settled) {
  *settled = !in_progress_;
  if (!in_progress_) return Status::ok();
  Device::Scope scope(*device_);
  int state = kNcclSuccess;
  RR_TRY(result(nccl().comm_get_async_error(comm_, &state), "ncclCommGetAsyncError"));
  RR_TRY(result(state, "NCCL"));
  *settled = !in_progress_;
  return Status::ok();
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

void Communicator::watch(const Event& finished, std::string title, std::shared_ptr<void> keep) {
  watched_.push_back({finished, std::move(title), std::move(keep), now_ns()});
}

Status Communicator::check(int64_t timeout_ns) {
  Device::Scope scope(*device_);
  while (!watched_.empty()) {
    bool reached = false;
    const Status status = device_->reached(watched_.front().finished, &reached);
    if (!status.is_ok()) return status.because(watched_.front().title + ranks());
    if (!reached) break;
    watched_.pop_front();
  }
  if (!pending() && !captured_) return Status::ok();
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
  Endings aborts;
  for (Communicator* one : communicators) {
    const bool live = one->comm_ && !one->aborted_;
    one->aborted_ = true;
    one->in_progress_ = false;
    if (live) aborts.start(one->device_, one->comm_, one->nccl().comm_abort);
  }
  aborts.wait(kAbortPatienceS);  // a graph that lives may keep NCCL for ever
}

}  // namespace ringreduce
