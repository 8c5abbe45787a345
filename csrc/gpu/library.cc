#include "gpu/library.h"

#include <dlfcn.h>

#include "common/log.h"
#include "common/settings.h"

namespace ringreduce {

namespace {

// Libraries stay loaded: their threads and atexit handlers do not survive dlclose.
void* open_library(const std::string& path, int flags, std::string* problem) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
  if (!library && problem) {
    const char* why = dlerror();
    if (!problem->empty()) *problem += "; ";
    *problem += why ? why : path + " cannot be loaded";
  }
  return library;
}

template <typename Function>
bool resolve(void* library, const char* name, Function* out) {
  *out = reinterpret_cast<Function>(dlsym(library, name));
  return *out != nullptr;
}

// The name of a function that is missing, or null.
const char* resolve_all(void* library, NcclApi* api) {
  const char* missing = nullptr;
  auto need = [&](const char* name, auto* function) {
    if (!resolve(library, name, function) && !missing) missing = name;
  };
  need("ncclGetVersion", &api->get_version);
  need("ncclGetErrorString", &api->get_error_string);
  need("ncclGetLastError", &api->get_last_error);
  need("ncclGetUniqueId", &api->get_unique_id);
  need("ncclCommInitRankConfig", &api->comm_init_rank_config);
  need("ncclCommSplit", &api->comm_split);
  need("ncclCommDestroy", &api->comm_destroy);
  need("ncclCommAbort", &api->comm_abort);
  need("ncclCommGetAsyncError", &api->comm_get_async_error);
  need("ncclAllReduce", &api->all_reduce);
  need("ncclBroadcast", &api->broadcast);
  need("ncclAllGather", &api->all_gather);
  need("ncclReduceScatter", &api->reduce_scatter);
  need("ncclSend", &api->send);
  need("ncclRecv", &api->recv);
  need("ncclGroupStart", &api->group_start);
  need("ncclGroupEnd", &api->group_end);
  return missing;
}

void use_nccl(void* handle, GpuLibrary* library) {
  Dl_info where{};
  if (dladdr(dlsym(handle, "ncclGetVersion"), &where) && where.dli_fname) library->nccl_path = where.dli_fname;
  const char* missing = resolve_all(handle, &library->nccl);
  int version = 0;
  if (library->nccl.get_version) library->nccl.get_version(&version);
  // Up to 2.8 the number was major * 1000 + minor * 100 + patch.
  if (version && version < NcclApi::kOldest) {
    const std::string text = version < 10000 ? std::to_string(version / 1000) + "." + std::to_string(version / 100 % 10)
                                             : nccl_version_text(version);
    library->nccl_problem = "NCCL " + text + " in " + library->nccl_path + " is too old, 2.27 or newer is needed";
  } else if (missing) {
    library->nccl_problem = library->nccl_path + " has no " + missing;
  } else {
    library->nccl_version = version;
  }
}

void load_nccl(const std::vector<std::string>& candidates, GpuLibrary* library) {
  constexpr const char* kName = "libnccl.so.2";
  const std::string& wanted = settings().nccl_library;
  if (void* handle = open_library(kName, RTLD_NOLOAD, nullptr)) {
    use_nccl(handle, library);
    if (!wanted.empty() && wanted != library->nccl_path)
      log(kWarning, "RINGREDUCE_NCCL is " + wanted + ", but NCCL is loaded already (" + library->nccl_path +
                        "), as a process can have one only; that one is used");
    return;
  }
  std::vector<std::string> paths = candidates;
  if (!wanted.empty()) paths = {wanted};  // what the user names is used or is an error, nothing else
  else paths.emplace_back(kName);
  std::string problem;
  for (const std::string& path : paths)
    if (void* handle = open_library(path, 0, &problem)) return use_nccl(handle, library);
  library->nccl_problem = "NCCL was not found (" + problem + "); pip install nvidia-nccl-cu13, or name its libnccl.so.2 in RINGREDUCE_NCCL";
}

}  // namespace

std::string nccl_version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

Status load_cuda(const std::string& path, const CudaApi** cuda) {
  std::string problem;
  void* handle = open_library(path, 0, &problem);
  if (!handle)
    return {Code::kUnsupported, "ringreduce's CUDA library cannot be loaded (" + problem +
                                    "); it is built with ringreduce where nvcc is found"};
  CudaApiFunction get = nullptr;
  if (!resolve(handle, kCudaApiSymbol, &get)) return {Code::kUnsupported, path + " is not ringreduce's CUDA library"};
  *cuda = get();
  if ((*cuda)->version == CudaApi::kVersion) return Status::ok();
  return {Code::kUnsupported, path + " is of another version of ringreduce; build ringreduce again"};
}

Status GpuLibrary::load(const std::string& cuda_library, const std::vector<std::string>& nccl_candidates,
                        std::shared_ptr<const GpuLibrary>* library) {
  auto loaded = std::make_shared<GpuLibrary>();
  RR_TRY(load_cuda(cuda_library, &loaded->cuda));
  load_nccl(nccl_candidates, loaded.get());
  *library = std::move(loaded);
  return Status::ok();
}

}  // namespace ringreduce
