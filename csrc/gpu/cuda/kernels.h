// The launches, each in a source of its own so that they are compiled side by side.
#pragma once

#include "gpu/cuda_api.h"

namespace ringreduce {
namespace gpu {

int pack(const PackArgs* args, void* stream);
int unpack(const PackArgs* args, void* stream);
int reduce(const DeviceReduceArgs* args, void* stream);
int merge_rows(const MergeRowsArgs* args, void* stream);

}  // namespace gpu
}  // namespace ringreduce
