#include "gpu/cuda/reduce.h"

#include "gpu/cuda/kernels.h"
#include "gpu/cuda/launch.cuh"

namespace ringreduce {
namespace gpu {

int reduce(const DeviceReduceArgs* args, void* stream) { return reduce_sources(*args, DeviceLaunch(stream)); }

}  // namespace gpu
}  // namespace ringreduce
