// MpiNet: a pool of transfers over MPI requests.
//
// A transfer is one MPI request for each piece of its message, all started at once (MPI keeps
// their order, so both sides agree on the pieces without a word) and tested first to last.
// Slots are used again with the memory they have: the steady state allocates nothing.
#include "net/mpi_net.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "common/clock.h"

namespace ringreduce {
namespace {

constexpr int64_t kCancelPatience = 1'000'000'000;  // ns, for a message that is half here
constexpr int64_t kFlushNs = 5'000'000'000;           // more than a link needs for what a socket holds
constexpr size_t kFlushed = 4 << 10;                  // what is shorter leaves with the call

template <class Handle>
class MpiNet final : public Net {
 public:
  MpiNet(const MpiApi<Handle>& api, Handle comm, size_t split_bytes) : api_(api), comm_(comm), split_(split_bytes) {}

  ~MpiNet() override {
    int finalized = 0;
    if (api_.finalized(&finalized) != 0 || finalized) return;
    for (size_t index = 0; index < slots_.size(); ++index) {
      if (!slots_[index].pieces.empty()) give_up(index);
    }
  }

  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override {
    // MPI's own prototypes part in constness; start() does not write to a buffer it sends.
    return start(true, to, tag, const_cast<void*>(data), bytes, request);
  }

  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override {
    return start(false, from, tag, data, bytes, request);
  }

  Status test(Request* request, bool* done) override {
    *done = !request->active();
    if (*done) return Status::ok();
    const size_t index = static_cast<size_t>(request->id);
    Transfer& transfer = slots_[index];
    while (transfer.finished < transfer.pieces.size()) {
      int flag = 0;
      const int code = api_.test(&transfer.pieces[transfer.finished], &flag, api_.status_ignore);
      if (code == 0 && !flag) return Status::ok();
      ++transfer.finished;
      if (code == 0) continue;
      const Status failure = error("MPI_Test", code, transfer);
      give_up(index);
      *request = Request{};
      *done = true;
      return failure;
    }
    release(index);
    *request = Request{};
    *done = true;
    return Status::ok();
  }

  // There is no such message; MPI looks after all it has to do.
  bool flush() override {
    if (sent_to_ < 0 || now_ns() - sent_ns_ > kFlushNs) return false;
    int found = 0;
    return api_.iprobe(sent_to_, kMaxTag, comm_, &found, api_.status_ignore) == 0;
  }

  void cancel(Request* request) override {
    if (request->active()) give_up(static_cast<size_t>(request->id));
    *request = Request{};
  }

 private:
  struct Transfer {
    bool is_send = false;
    int peer = 0, tag = 0;
    size_t bytes = 0;
    std::vector<Handle> pieces;  // empty: the slot is free
    size_t finished = 0;         // pieces before this one are done
  };

  Status start(bool is_send, int peer, int tag, void* data, size_t bytes, Request* request) {
    const size_t index = acquire();
    Transfer& transfer = slots_[index];
    transfer.is_send = is_send;
    transfer.peer = peer;
    transfer.tag = tag;
    transfer.bytes = bytes;
    size_t begin = 0;
    do {  // once for an empty message
      char* piece = static_cast<char*>(data) + begin;
      const int count = static_cast<int>(std::min(bytes - begin, split_));
      Handle handle{};
      const int code = is_send ? api_.isend(piece, count, api_.byte, peer, tag, comm_, &handle)
                               : api_.irecv(piece, count, api_.byte, peer, tag, comm_, &handle);
      if (code != 0) {
        const Status failure = error(is_send ? "MPI_Isend" : "MPI_Irecv", code, transfer);
        give_up(index);
        return failure;
      }
      transfer.pieces.push_back(handle);
      begin += static_cast<size_t>(count);
    } while (begin < bytes);
    request->id = static_cast<int64_t>(index);
    if (is_send && bytes > kFlushed) {
      sent_to_ = peer;
      sent_ns_ = now_ns();
    }
    return Status::ok();
  }

  size_t acquire() {
    if (free_.empty()) {
      slots_.emplace_back();
      free_.reserve(slots_.size());  // release() must not allocate
      return slots_.size() - 1;
    }
    const size_t index = free_.back();
    free_.pop_back();
    return index;
  }

  void release(size_t index) {
    slots_[index].pieces.clear();
    slots_[index].finished = 0;
    free_.push_back(index);
  }

  // A receive is cancelled. If its message is arriving already, MPI completes it instead,
  // which is waited for, but not for ever: the peer may be gone. MPI cannot take a send back.
  void give_up(size_t index) {
    Transfer& transfer = slots_[index];
    for (size_t piece = transfer.finished; piece < transfer.pieces.size(); ++piece) {
      Handle* handle = &transfer.pieces[piece];
      if (!transfer.is_send) api_.cancel(handle);
      const int64_t deadline = now_ns() + (transfer.is_send ? 0 : kCancelPatience);
      int flag = 0;
      while (api_.test(handle, &flag, api_.status_ignore) == 0 && !flag) {
        if (now_ns() < deadline) continue;
        api_.request_free(handle);
        break;
      }
    }
    release(index);
  }

  Status error(const char* function, int code, const Transfer& transfer) const {
    char text[kMpiMaxErrorString] = "";
    int length = 0;
    if (api_.error_string(code, text, &length) != 0) std::snprintf(text, sizeof(text), "error %d", code);
    std::replace(text, text + std::strlen(text), '\n', ' ');  // MPICH writes its stack of calls
    return Status(Code::kSystem, std::string(function) + ": " + text)
        .because((transfer.is_send ? "cannot send " : "cannot receive ") + std::to_string(transfer.bytes) + " bytes " +
                 (transfer.is_send ? "to" : "from") + " rank " + std::to_string(transfer.peer) + ", tag " +
                 std::to_string(transfer.tag));
  }

  const MpiApi<Handle> api_;
  const Handle comm_;
  const size_t split_;
  std::vector<Transfer> slots_;
  std::vector<size_t> free_;
  int sent_to_ = -1;  // the last long message
  int64_t sent_ns_ = 0;
};

template <class Handle>
Status make(const MpiLibrary& library, uintptr_t comm_address, size_t split_bytes, std::unique_ptr<Net>* out) {
  MpiApi<Handle> api{};
  RR_TRY(load_mpi_api(library, &api));
  Handle comm;
  std::memcpy(&comm, reinterpret_cast<const void*>(comm_address), sizeof(comm));
  *out = mpi_net_over(api, comm, split_bytes);
  return Status::ok();
}

}  // namespace

template <class Handle>
std::unique_ptr<Net> mpi_net_over(const MpiApi<Handle>& api, Handle comm, size_t split_bytes) {
  return std::make_unique<MpiNet<Handle>>(api, comm, split_bytes);
}

template std::unique_ptr<Net> mpi_net_over(const MpiApi<int>&, int, size_t);
template std::unique_ptr<Net> mpi_net_over(const MpiApi<void*>&, void*, size_t);

Status make_mpi_net(uintptr_t comm_address, std::unique_ptr<Net>* out, size_t split_bytes) {
  MpiLibrary library;
  RR_TRY(find_mpi(&library));
  return library.abi == MpiAbi::kMpich ? make<int>(library, comm_address, split_bytes, out)
                                       : make<void*>(library, comm_address, split_bytes, out);
}

}  // namespace ringreduce
