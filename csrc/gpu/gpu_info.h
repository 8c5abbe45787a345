// What each rank has of GPU and NCCL, and whether NCCL is the way for all of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gpu/device.h"

namespace ringreduce {

// What one rank tells the others. Sent as bytes.
struct GpuInfo {
  int32_t host = 0;            // as all ranks number them
  int32_t nccl_version = 0;    // 0: none
  int32_t shares_allowed = 0;  // NCCL_MULTI_RANK_GPU_ENABLE is set
  char pci[32] = {};
  char problem[400] = {};      // why there is no NCCL
  NcclUniqueId id = {};        // the set's first rank's
};

// Of this rank. `with_id`: it makes the unique id, for which NCCL starts a thread that waits for the ranks.
Status make_info(Device& device, int host, bool with_id, GpuInfo* info);

enum class GpuPath { kNccl, kHost };

// The same on all ranks. `world`: set rank -> global rank, for the text in *why.
GpuPath choose_path(const std::vector<GpuInfo>& infos, const std::vector<int>& world, std::string* why);

}  // namespace ringreduce
