#include "gpu/communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "common/settings.h"

namespace ringreduce {

namespace {

constexpr int kSharing = 23000;  // the first NCCL that lets two ranks use one GPU (when asked to)
constexpr int kRanksOnOneGpu = 2;
constexpr double kAbortPatienceS = 10;

std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

template <size_t kSize>
void set_text(char (&to)[kSize], const std::string& text) {
  std::snprintf(to, kSize, "%s", text.c_str());
}

// Communicators that NCCL is ending, each on a thread, which may take for ever: then it is left behind.
class Endings {
 public:
  ~Endings() {
    for (std::thread& thread : threads_) thread.detach();
  }
  void start(std::shared_ptr<Device> device, NcclComm comm, int (*end)(NcclComm)) {
    wait(0);  // joins those that are over: a thread keeps its stack until then
    std::lock_guard<std::mutex> lock(gate_->mutex);
    ++gate_->left;
    threads_.emplace_back([gate = gate_, device = std::move(device), comm, end] {
      {
        device->make_current();
        Device::Scope scope(*device);
        end(comm);
      }
      std::lock_guard<std::mutex> lock(gate->mutex);
      if (!--gate->left) gate->changed.notify_all();
    });
  }
  void wait(double most_s) {
    std::vector<std::thread> over;
    {
      std::unique_lock<std::mutex> lock(gate_->mutex);
      if (!gate_->changed.wait_for(lock, std::chrono::duration<double>(most_s), [this] { return !gate_->left; })) return;
      over.swap(threads_);
    }
    for (std::thread& thread : over) thread.join();
  }

 private:
  struct Gate {
    std::mutex mutex;
    std::condition_variable changed;
    int left = 0;
  };
  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();  // lives as long as the last thread
  std::vector<std::thread> threads_;
};

Endings& destroying() {
  static Endings& all = *new Endings;
  return all;
}

}  // namespace

GpuPath choose_path(const std::vector<GpuInfo>& infos, const std::vector<int>& world, std::string* why) {
  const auto rank = [&](size_t i) { return "rank " + std::to_string(world[i]); };
  if (infos.size() == 1) return GpuPath::kNccl;  // which has nothing to do then
  std::map<std::pair<int, std::string>, std::vector<size_t>> on_gpu;
  for (size_t i = 0; i < infos.size(); ++i) {
    const GpuInfo& info = infos[i];
    if (!info.nccl_version) return *why = rank(i) + ": " + info.problem, GpuPath::kHost;
    if (info.nccl_version / 100 != infos[0].nccl_version / 100) {
      *why = rank(0) + " has NCCL " + version_text(infos[0].nccl_version) + ", " + rank(i) + " has NCCL " +
             version_text(info.nccl_version) + "; install the same on all";
      return GpuPath::kHost;
    }
    on_gpu[{info.host, info.pci}].push_back(i);
  }
  for (const auto& [where, ranks] : on_gpu) {
    if (ranks.size() == 1) continue;
    const bool allowed = std::all_of(infos.begin(), infos.end(), [](const GpuInfo& info) {
      return info.nccl_version >= kSharing && info.shares_allowed;
    });
    if (allowed && ranks.size() <= kRanksOnOneGpu) continue;
    *why = rank(ranks[0]) + " and " + rank(ranks[1]) + " share the GPU " + where.second + " of host " +
           std::to_string(where.first) + ", which NCCL refuses; give each rank a GPU of its own";
    return GpuPath::kHost;
  }
  return GpuPath::kNccl;
}

Status Communicator::make_info(Device& device, int host, bool first, GpuInfo* info) {
  const GpuLibrary& library = device.library();
  info->host = host;
  info->nccl_version = library.nccl_version;
  info->shares_allowed = settings().nccl_multi_rank_gpu;
  set_text(info->pci, device.pci());
  set_text(info->problem, library.nccl_problem);
  if (settings().gpu_path == "host") {
    info->nccl_version = 0;
    set_text(info->problem, "RINGREDUCE_GPU_PATH is host");
  }
  if (!first || !info->nccl_version) return Status::ok();
  Device::Scope scope(device);
  const int code = library.nccl.get_unique_id(&info->id);
  if (code == kNcclSuccess) return Status::ok();
  info->nccl_version = 0;
  set_text(info->problem, std::string("ncclGetUniqueId failed: ") + library.nccl.get_last_error(nullptr));
  return Status::ok();
}

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
