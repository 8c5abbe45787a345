// The kernels on host memory: the same bodies, block after block and thread after thread. The tests
// check the kernels so where there is no GPU, and the double of CUDA computes with them.
// Results as those of CudaApi's functions: kCudaSuccess or cudaErrorInvalidValue.
#pragma once

#include "gpu/cuda/merge_rows.h"
#include "gpu/cuda/pack.h"
#include "gpu/cuda/reduce.h"

namespace ringreduce {
namespace gpu {

struct HostLaunch {
  static constexpr bool kLargeParameters = true;
  bool large = true;
  int* launches = nullptr;

  bool large_parameters() const { return large; }
  template <class Body>
  int run(const typename Body::Parameters& parameters, uint64_t blocks) const {
    if (launches) ++*launches;
    for (uint64_t block = 0; block < blocks; ++block)
      for (uint32_t thread = 0; thread < kThreads; ++thread)
        Body::run(parameters, static_cast<uint32_t>(block), thread);
    return kCudaSuccess;
  }
};

}  // namespace gpu

inline int pack_on_host(const PackArgs& args) { return gpu::pack_or_unpack(args, true, gpu::HostLaunch{}); }
inline int unpack_on_host(const PackArgs& args) { return gpu::pack_or_unpack(args, false, gpu::HostLaunch{}); }
inline int reduce_on_host(const DeviceReduceArgs& args) { return gpu::reduce_sources(args, gpu::HostLaunch{}); }
inline int merge_rows_on_host(const MergeRowsArgs& args) { return gpu::merge_all_rows(args, gpu::HostLaunch{}); }

}  // namespace ringreduce
