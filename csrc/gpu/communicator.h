// The ranks of one process set (or of one gradient plan) on their GPUs: a communicator of NCCL and
// the stream on which its operations run, in the order in which all ranks issue them.
//
// How it comes to be: every rank tells the others what it has (GpuInfo), all draw the same
// conclusion (choose_path, gpu_info.h), and where that is NCCL, they make a communicator without blocking.
//
//   info of all ranks ─► choose_path ─► host   why: no NCCL, two ranks on one GPU, ...
//                                  └──► nccl   start() or connect() ─► settled() ... ─► ready
//
// start() makes a nonblocking one: no call waits, whatever the other ranks do. But newer versions of NCCL
// start a thread for each call on it, which takes longer than the call, and the first call of a kind connects
// the ranks. connect() makes a blocking one, on a thread of its own, where it then reduces as much as later
// calls will: those find the ranks connected, and have enqueued their work when they return.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "ops/submission.h"
#include "ops/topology.h"
#include "common/clock.h"
#include "gpu/device.h"
#include "gpu/gpu_info.h"

namespace ringreduce {

class Communicator {
 public:
  // Begins a communicator of the ranks of `set` (NCCL is not asked where that is one).
  static Status start(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                      std::shared_ptr<Communicator>* communicator);
  // One for these reductions, of the same ranks; they may be captured in CUDA graphs.
  struct AllReduce {
    size_t count;
    NcclDType dtype;
    NcclRedOp op;
  };
  static Status connect(std::shared_ptr<Device> device, const std::vector<GpuInfo>& infos, const Topology& set,
                        const std::vector<AllReduce>& reductions, std::shared_ptr<Communicator>* communicator);
  // A stream only, for the path through host memory.
  static Status without_nccl(std::shared_ptr<Device> device, std::shared_ptr<Communicator>* communicator);
  // Collective over this communicator, with nothing of it on the GPU: one more, of the ranks of `set` in
  // their order; null on ranks outside it. Then both must settle, this one first.
  bool can_split() const { return comm_ != nullptr; }
  Status split(const Topology* set, std::shared_ptr<Communicator>* child);
  // NCCL ends it on a thread of its own: that waits for the other ranks of the host to do the same.
  ~Communicator();
  static void wait_for_ended(double most_s);

  Device& device() { return *device_; }
  const GpuStream& stream() const { return stream_; }
  int size() const { return size_; }

  // False while a call, or the making, is still being worked on by NCCL; then nothing else may be
  // called, and what it enqueues is not on the stream yet.
  Status settled(bool* settled);
  // An error once the making has taken that long: a rank may have failed in it, for which NCCL waits
  // on the others.
  Status late(int64_t patience_ns) const;

  // Enqueued on stream(). Bytes, elements and addresses are those of one rank; see nccl.h.
  Status all_reduce(const void* in, void* out, size_t count, NcclDType dtype, NcclRedOp op);
  Status reduce_scatter(const void* in, void* out, size_t count, NcclDType dtype, NcclRedOp op);
  Status all_gather(const void* in, void* out, size_t bytes);
  Status broadcast(const void* in, void* out, size_t bytes, int root);
  // counts, offsets: bytes by set rank.
  Status all_gather_uneven(const void* in, char* out, const std::vector<int64_t>& counts);
  Status all_to_all(const char* in, const std::vector<int64_t>& send, char* out, const std::vector<int64_t>& receive);

  // What was enqueued up to here is finished when `finished` is reached; until then `keep` lives
  // and check() watches it. `serial` grows, where over() is asked.
  void watch(const Event& finished, std::string title, std::shared_ptr<void> keep, uint64_t serial = 0);
  // Whether all of it is finished up to `serial`.
  Status over(uint64_t serial, bool* over);
  // A CUDA graph has captured calls. It may be replayed at any time, unseen, so check() has NCCL to ask
  // from now on; and NCCL ends a communicator only after the graph, so that is left to the end of the process.
  void keep_for_graphs() { captured_ = true; }
  // What it was called for is not over. (Nothing is, while a thread makes it.)
  bool pending() const { return !watched_.empty() || (in_progress_ && !making_); }
  bool watching() const { return !watched_.empty() || captured_; }
  // Errors that NCCL found meanwhile, and work that has taken longer than the deadline.
  Status check(int64_t timeout_ns);
  // Ends everything that is on the GPU or waits for a peer. Nothing may be called afterwards.
  void abort() { abort_all({this}); }
  // All at once, and with patience: NCCL frees memory in an abort, which waits for whatever is on the GPU,
  // for the stuck kernels of other communicators, too.
  static void abort_all(const std::vector<Communicator*>& communicators);

 private:
  struct Watched {
    Event finished;
    std::string title;
    std::shared_ptr<void> keep;
    int64_t since_ns;
    uint64_t serial;
  };

  struct Making;  // on a thread

  Communicator(std::shared_ptr<Device> device, std::vector<int> world)
      : device_(std::move(device)), world_(std::move(world)), size_(world_.empty() ? 1 : static_cast<int>(world_.size())) {}
  std::string ranks() const;
  Status drop_finished();
  Status made(bool* settled);
  Status result(int code, const char* what);
  template <typename Body>
  Status grouped(const char* what, Body body);
  const NcclApi& nccl() const { return device_->library().nccl; }

  std::shared_ptr<Device> device_;
  std::vector<int> world_;  // set rank -> global rank, for messages
  int size_;
  GpuStream stream_;
  NcclComm comm_ = nullptr;
  std::shared_ptr<Making> making_;
  int64_t begun_ns_ = now_ns();
  bool in_progress_ = false, aborted_ = false, captured_ = false;
  Status failed_;  // for good
  std::deque<Watched> watched_;
};

}  // namespace ringreduce
