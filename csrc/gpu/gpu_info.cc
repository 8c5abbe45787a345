#include "gpu/gpu_info.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "common/settings.h"
#include "gpu/library.h"

namespace ringreduce {

namespace {

constexpr int kSharing = 23000;  // the first NCCL that lets two ranks use one GPU (when asked to)
constexpr int kRanksOnOneGpu = 2;

template <size_t kSize>
void set_text(char (&to)[kSize], const std::string& text) {
  std::snprintf(to, kSize, "%s", text.c_str());
}

}  // namespace

GpuPath choose_path(const std::vector<GpuInfo>& infos, const std::vector<int>& world, std::string* why) {
  const auto rank = [&](size_t i) { return "rank " + std::to_string(world[i]); };
  if (infos.size() == 1) return GpuPath::kNccl;  // which has nothing to do then
  std::map<std::pair<int, std::string>, std::vector<size_t>> on_gpu;
  for (size_t i = 0; i < infos.size(); ++i) {
    const GpuInfo& info = infos[i];
    if (!info.nccl_version) return *why = rank(i) + ": " + info.problem, GpuPath::kHost;
    if (info.nccl_version / 100 != infos[0].nccl_version / 100) {
      *why = rank(0) + " has NCCL " + nccl_version_text(infos[0].nccl_version) + ", " + rank(i) + " has NCCL " +
             nccl_version_text(info.nccl_version) + "; install the same on all";
      return GpuPath::kHost;
    }
    on_gpu[{info.host, info.pci}].push_back(i);
  }
  for (const auto& [where, ranks] : on_gpu) {
    if (ranks.size() == 1) continue;
    const bool allowed = std::all_of(infos.begin(), infos.end(), [](const GpuInfo& info) {
      return info.nccl_version >= kSharing && info.shares_allowed;
    });
    if (allowed && ranks.size() <= kRanksOnOneGpu) continue;
    *why = rank(ranks[0]) + " and " + rank(ranks[1]) + " share the GPU " + where.second + " of host " +
           std::to_string(where.first) + ", which NCCL refuses; give each rank a GPU of its own";
    return GpuPath::kHost;
  }
  return GpuPath::kNccl;
}

Status make_info(Device& device, int host, bool with_id, GpuInfo* info) {
  const GpuLibrary& library = device.library();
  info->host = host;
  info->nccl_version = library.nccl_version;
  info->shares_allowed = settings().nccl_multi_rank_gpu == "1";
  set_text(info->pci, device.pci());
  set_text(info->problem, library.nccl_problem);
  if (settings().gpu_path == "host") {
    info->nccl_version = 0;
    set_text(info->problem, "RINGREDUCE_GPU_PATH is host");
  }
  if (!with_id || !info->nccl_version) return Status::ok();
  Device::Scope scope(device);
  const int code = library.nccl.get_unique_id(&info->id);
  if (code == kNcclSuccess) return Status::ok();
  info->nccl_version = 0;
  set_text(info->problem, std::string("ncclGetUniqueId failed: ") + library.nccl.get_last_error(nullptr));
  return Status::ok();
}

}  // namespace ringreduce
