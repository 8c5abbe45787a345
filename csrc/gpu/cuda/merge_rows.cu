#include "gpu/cuda/merge_rows.h"

#include "gpu/cuda/kernels.h"
#include "gpu/cuda/launch.cuh"

namespace ringreduce {
namespace gpu {

int merge_rows(const MergeRowsArgs* args, void* stream) { return merge_all_rows(*args, DeviceLaunch(stream)); }

}  // namespace gpu
}  // namespace ringreduce
