// Ranks for tests of the NCCL double: threads, each with a GPU, a stream and a communicator.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../doubles/load.h"
#include "check.h"
#include "gpu/library.h"

namespace ringreduce {

inline Doubles& doubles() { return Doubles::get(); }
inline const CudaApi& cuda() { return *doubles().cuda; }

inline const NcclApi& nccl() {
  static const auto loaded = [] {
    std::shared_ptr<const GpuLibrary> library;
    CHECK_OK(GpuLibrary::load(doubles().cuda_path, {doubles().nccl_path}, &library));
    CHECK_EQ(library->nccl_problem, std::string());
    return library;
  }();
  return loaded->nccl;
}

struct NcclRank {
  int rank, size;
  void* stream = nullptr;
  NcclComm comm = nullptr;

  NcclRank(int rank, int size) : rank(rank), size(size) {
    CHECK_EQ(cuda().set_device(rank), kCudaSuccess);
    CHECK_EQ(cuda().stream_create(&stream), kCudaSuccess);
  }
  ~NcclRank() {
    if (comm) CHECK_EQ(nccl().comm_destroy(comm), kNcclSuccess);
    CHECK_EQ(doubles().stream_destroy(stream), kCudaSuccess);
  }

  // What a nonblocking call on a communicator answers in the end.
  static int settled(NcclComm comm, int code) {
    while (code == kNcclInProgress) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      CHECK_EQ(nccl().comm_get_async_error(comm, &code), kNcclSuccess);
    }
    return code;
  }
  int settled(int code) const { return settled(comm, code); }
  int init(const NcclUniqueId& id, bool blocking = false) {
    NcclConfig config;
    config.blocking = blocking;
    return settled(nccl().comm_init_rank_config(&comm, size, id, rank, &config));
  }
  // Says success while it is in progress.
  int split(int color, int key, NcclComm* child, bool blocking = false) {
    NcclConfig config;
    config.blocking = blocking;
    const int code = nccl().comm_split(comm, color, key, child, &config);
    return code == kNcclSuccess ? settled(kNcclInProgress) : code;
  }
  void abort() {
    CHECK_EQ(nccl().comm_abort(comm), kNcclSuccess);
    comm = nullptr;
  }
  int state() const {
    int code = kNcclSuccess;
    CHECK_EQ(nccl().comm_get_async_error(comm, &code), kNcclSuccess);
    return code;
  }
  int wait_for_error() const {
    int code = kNcclSuccess;
    while ((code = state()) == kNcclSuccess || code == kNcclInProgress) std::this_thread::sleep_for(std::chrono::microseconds(200));
    return code;
  }
  void finish() const { CHECK_EQ(doubles().stream_synchronize(stream), 0); }
  // Whether the stream has done its work.
  bool idle() const {
    void* event = nullptr;
    CHECK_EQ(cuda().event_create(&event), kCudaSuccess);
    CHECK_EQ(cuda().event_record(event, stream), kCudaSuccess);
    const bool idle = cuda().event_query(event) == kCudaSuccess;
    CHECK_EQ(cuda().event_destroy(event), kCudaSuccess);
    return idle;
  }
};

inline NcclUniqueId unique_id() {
  NcclUniqueId id;
  CHECK_EQ(nccl().get_unique_id(&id), kNcclSuccess);
  return id;
}

using NcclBody = std::function<void(NcclRank&)>;

// Without a communicator yet.
inline void on_ranks(int size, const NcclBody& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&body, rank, size] {
      NcclRank mine(rank, size);
      body(mine);
    });
  for (std::thread& thread : threads) thread.join();
}

inline void on_communicators(int size, const NcclBody& body) {
  const NcclUniqueId id = unique_id();
  on_ranks(size, [&](NcclRank& mine) {
    CHECK_EQ(mine.init(id), kNcclSuccess);
    body(mine);
  });
}

// At 1 to 4 ranks, with streams that dawdle, and no misuse.
inline void on_all_sizes(const NcclBody& body) {
  doubles().reset();
  doubles().set("delay_us", 200);
  for (int size = 1; size <= 4; ++size) on_communicators(size, body);
  CHECK_EQ(doubles().misuse_text(), std::string());
  doubles().reset();
}

}  // namespace ringreduce
