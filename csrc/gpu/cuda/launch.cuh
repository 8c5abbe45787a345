// Launches on the device: the counterpart of emulate.h's HostLaunch.
#pragma once

#include <cuda_runtime.h>

#include "gpu/cuda/portable.h"

namespace ringreduce {
namespace gpu {

// CUDA keeps an error for whoever asks cudaGetLastError next. It is returned already: forgotten.
inline int forget(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

// Parameters stay where the driver puts them (__grid_constant__): a body that picks an entry by a
// number known at run time must not make each thread copy them all.
template <class Body>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ typename Body::Parameters parameters) {
  Body::run(parameters, blockIdx.x, threadIdx.x);
}

// Every kernel that is launched anywhere, for load_kernels(): a list that the static objects make.
struct AnyKernel {
  const void* function;
  const AnyKernel* next;
  inline static const AnyKernel* first = nullptr;
  explicit AnyKernel(const void* function) : function(function), next(first) { first = this; }
};
template <class Body>
struct Known {
  static const AnyKernel entry;
};
template <class Body>
const AnyKernel Known<Body>::entry{reinterpret_cast<const void*>(kernel<Body>)};

struct DeviceLaunch {
  cudaStream_t stream;

  explicit DeviceLaunch(void* stream) : stream(static_cast<cudaStream_t>(stream)) {}

  template <class Body>
  int run(const typename Body::Parameters& parameters, uint64_t blocks) const {
    static_cast<void>(&Known<Body>::entry);  // so that there is one
    void* arguments[] = {const_cast<typename Body::Parameters*>(&parameters)};
    return forget(cudaLaunchKernel(kernel<Body>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments, 0, stream));
  }
};

}  // namespace gpu
}  // namespace ringreduce
