// The doubles for native tests: where they lie, and control.h's functions by name. The programs are
// not linked with them: they open them as the engine opens the real libraries.
//
//   Doubles& doubles = Doubles::get();
//   GpuLibrary::load(doubles.cuda_path, {doubles.nccl_path}, &library);
//   doubles.fail("ncclAllReduce", kNcclSystemError, 0, 1);
//   ...
//   CHECK_EQ(doubles.misuse_text(), std::string());
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "control.h"
#include "gpu/cuda_api.h"

namespace ringreduce {

struct Doubles {
  static Doubles& get() {
    static Doubles& doubles = *new Doubles;
    return doubles;
  }

  std::string cuda_path, nccl_path;
  const CudaApi* cuda = nullptr;

  decltype(&rr_double_set) set;
  decltype(&rr_double_fail) fail;
  decltype(&rr_double_reset) reset;
  decltype(&rr_double_count) count;
  decltype(&rr_double_trace_start) trace_start;
  decltype(&rr_double_misuses) misuses;
  decltype(&rr_double_stream_synchronize) stream_synchronize;
  decltype(&rr_double_stream_destroy) stream_destroy;
  decltype(&rr_double_stall) stall;
  decltype(&rr_double_stall_all) stall_all;
  decltype(&rr_double_capture_begin) capture_begin;
  decltype(&rr_double_capture_end) capture_end;
  decltype(&rr_double_graph_launch) graph_launch;
  decltype(&rr_double_live_blocks) live_blocks;

  std::string trace_stop() const { return trace_stop_(); }
  std::string misuse_text() const { return misuse_text_(); }

 private:
  // build/native-thread/test_gpu loads build/doubles-thread/*.so
  Doubles() {
    char program[4096] = {};
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) std::abort();
    std::string folder(program);
    folder.resize(folder.rfind('/'));
    folder.replace(folder.rfind("/native"), 7, "/doubles");
    cuda_path = folder + "/libcuda_double.so";
    nccl_path = folder + "/libnccl_double.so";
    library_ = dlopen(cuda_path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library_) {
      std::fprintf(stderr, "%s\n", dlerror());
      std::abort();
    }
    CudaApiFunction table;
    find(kCudaApiSymbol, &table);
    cuda = table();
    find("rr_double_set", &set);
    find("rr_double_fail", &fail);
    find("rr_double_reset", &reset);
    find("rr_double_count", &count);
    find("rr_double_trace_start", &trace_start);
    find("rr_double_trace_stop", &trace_stop_);
    find("rr_double_misuses", &misuses);
    find("rr_double_misuse_text", &misuse_text_);
    find("rr_double_stream_synchronize", &stream_synchronize);
    find("rr_double_stream_destroy", &stream_destroy);
    find("rr_double_stall", &stall);
    find("rr_double_stall_all", &stall_all);
    find("rr_double_capture_begin", &capture_begin);
    find("rr_double_capture_end", &capture_end);
    find("rr_double_graph_launch", &graph_launch);
    find("rr_double_live_blocks", &live_blocks);
  }

  template <typename Function>
  void find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library_, name));
    if (*function) return;
    std::fprintf(stderr, "%s is missing\n", name);
    std::abort();
  }

  void* library_ = nullptr;
  decltype(&rr_double_trace_stop) trace_stop_;
  decltype(&rr_double_misuse_text) misuse_text_;
};

}  // namespace ringreduce
