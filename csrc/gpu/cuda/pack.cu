#include "gpu/cuda/pack.h"

#include "gpu/cuda/kernels.h"
#include "gpu/cuda/launch.cuh"

namespace ringreduce {
namespace gpu {

struct PackLaunch : DeviceLaunch {
  using DeviceLaunch::DeviceLaunch;
  static constexpr bool large_parameters() { return true; }
};

int pack(const PackArgs* args, void* stream) { return pack_or_unpack(*args, true, PackLaunch(stream)); }
int unpack(const PackArgs* args, void* stream) { return pack_or_unpack(*args, false, PackLaunch(stream)); }

}  // namespace gpu
}  // namespace ringreduce
