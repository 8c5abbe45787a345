// Every setting of the core, read once from the environment: the only place that calls
// getenv. docs/tuning.md lists them for users.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "common/caches.h"

namespace ringreduce {

// Of a ring between hosts. MPI sends what is below its eager limit (64 KiB for TCP) without asking the
// receiver first, so the link does not wait for either side to look.
constexpr size_t kMessageBytes = 32 << 10;

struct Settings {
  std::string kernels;                    // RINGREDUCE_KERNELS: scalar|avx2|avx512, "" chooses
  size_t chunk_bytes = 0;                 // RINGREDUCE_CHUNK_BYTES: one rank's staging slot, 0 chooses
  size_t fusion_bytes = 4 << 20;          // RINGREDUCE_FUSION_BYTES: largest fused group
  size_t result_bytes = 260 << 20;        // RINGREDUCE_RESULT_BYTES: memory of dropped results to keep
  double timeout_s = 300;                 // RINGREDUCE_TIMEOUT: seconds until a wait fails
  double stall_warning_s = 30;            // RINGREDUCE_STALL_WARNING: seconds until a warning
  double host_timeout_s = 10;             // RINGREDUCE_HOST_TIMEOUT: seconds of silence until a host is lost
  int stack_signal = 45;                  // RINGREDUCE_STACK_SIGNAL: asks for Python stacks, 0 off
  double spin_us = 200;                   // RINGREDUCE_SPIN_US: spin before sleeping
  std::string cuda_library;               // RINGREDUCE_CUDA_LIBRARY: instead of the one installed
  std::string nccl_library;               // RINGREDUCE_NCCL: the libnccl.so to use
  std::string gpu_path;                   // RINGREDUCE_GPU_PATH: nccl|host, "" chooses
  std::string nccl_multi_rank_gpu;        // NCCL_MULTI_RANK_GPU_ENABLE: "1", NCCL lets two ranks use one GPU
  std::string host_id;                    // RINGREDUCE_HOST_ID: ranks with the same one share memory, "" asks MPI
  std::string drift = "warn";             // RINGREDUCE_DRIFT: warn|error|off
  std::string single_copy = "auto";       // RINGREDUCE_SINGLE_COPY: auto|always|off
  int tree_arity = 8;                     // RINGREDUCE_TREE_ARITY: children of a negotiation node
  // Between hosts it is divided by the rails, and their parts by the hosts: the messages.
  size_t chunk(int hosts, int rails) const {
    if (chunk_bytes) return chunk_bytes;
    return hosts == 1 ? staging_bytes(caches(), rails) : std::min<size_t>(kMessageBytes * hosts * rails, 8 << 20);
  }
  int log_level = 1;                      // RINGREDUCE_LOG: 0 errors, 1 warnings, 2 info, 3 debug
};

// Parsed at first use. A malformed value is an error text here, raised by init().
const Settings& settings();
const std::string& settings_error();
// Every variable and its value in force: the default where it is not set or malformed, "" or 0 where that is
// chosen later.
struct SettingInfo {
  std::string name, value, standard, allowed;  // standard: the default
  bool agrees;                                 // must be the same on all ranks
};
const std::vector<SettingInfo>& setting_infos();
void reload_settings();  // init() after a change of the environment

}  // namespace ringreduce
