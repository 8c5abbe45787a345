#include "gpu/cuda/pack.h"

#include "gpu/cuda/kernels.h"
#include "gpu/cuda/launch.cuh"

namespace ringreduce {
namespace gpu {

namespace {

struct PackLaunch : DeviceLaunch {
  using DeviceLaunch::DeviceLaunch;

  // The compiler must know of more than 4 KiB of parameters, and so must the driver: a program
  // made with CUDA 12.1 may run on one of 12.0.
  static constexpr int kSince = 12010;
  static constexpr bool kLargeParameters = CUDART_VERSION >= kSince;
  static bool large_parameters() {
    static const bool known = [] {
      int version = 0;
      return cudaDriverGetVersion(&version) == cudaSuccess && version >= kSince;
    }();
    return known;
  }
};

}  // namespace

int pack(const PackArgs* args, void* stream) { return pack_or_unpack(*args, true, PackLaunch(stream)); }
int unpack(const PackArgs* args, void* stream) { return pack_or_unpack(*args, false, PackLaunch(stream)); }

}  // namespace gpu
}  // namespace ringreduce
