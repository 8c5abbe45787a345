// The two libraries that GPU operations need, found at run time: CUDA's functions and our kernels
// (one library of ours, csrc/gpu/cuda/, or a double of the tests) and NCCL.
//
// Without the first there are no GPU operations. Without NCCL they go through host memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "gpu/cuda_api.h"
#include "gpu/nccl_api.h"

namespace ringreduce {

struct GpuLibrary {
  const CudaApi* cuda = nullptr;
  NcclApi nccl{};
  int nccl_version = 0;      // 22703 for 2.27.3; 0 where there is none that can be used
  std::string nccl_path;
  std::string nccl_problem;  // why there is none

  // NCCL is the one that is loaded already (torch brings its own), else RINGREDUCE_NCCL, else the
  // first of `nccl_candidates` that loads, else "libnccl.so.2" wherever the system has it.
  static Status load(const std::string& cuda_library, const std::vector<std::string>& nccl_candidates,
                     std::shared_ptr<const GpuLibrary>* library);
};

std::string nccl_version_text(int version);  // 22703: "2.27.3"

Status load_cuda(const std::string& path, const CudaApi** cuda);

}  // namespace ringreduce
