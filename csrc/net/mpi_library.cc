// Finding the MPI library that is already in the process. mpi4py loads it with its own
// symbols hidden from everybody else (RTLD_LOCAL), so dlsym(RTLD_DEFAULT) does not see it:
// we walk the list of loaded libraries for one that has MPI's name and is initialised.
#include <cstdint>
#include <cstring>
#include <vector>

#include <dlfcn.h>
#include <link.h>

#include "net/mpi_abi.h"

namespace ringreduce {
namespace {

template <class Function>
bool resolve(void* library, const char* name, Function** out) {
  *out = reinterpret_cast<Function*>(dlsym(library, name));
  return *out != nullptr;
}

// libmpi, libmpich, libmpi_abi, libmpi_cray, libpmpi, ...
bool has_mpi_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  const char* name = slash ? slash + 1 : path;
  return std::strncmp(name, "libmpi", 6) == 0 || std::strncmp(name, "libpmpi", 7) == 0;
}

void list_candidates(std::vector<std::string>* paths) {
  // Only collects: the loader's lock is held, so nothing may be opened here.
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* list) {
        if (has_mpi_name(info->dlpi_name)) static_cast<std::vector<std::string>*>(list)->emplace_back(info->dlpi_name);
        return 0;
      },
      paths);
  paths->emplace_back();  // last, the program itself and what it shows to all
}

bool says_yes(void* library, const char* question) {
  int (*ask)(int*) = nullptr;
  int flag = 0;
  return resolve(library, question, &ask) && ask(&flag) == 0 && flag;
}

MpiAbi abi_of(void* library) {
  int (*abi_version)(int*, int*) = nullptr;
  int major = -1, minor = -1;  // MPICH's own libmpi has the function too, and leaves -1
  if (resolve(library, "MPI_Abi_get_version", &abi_version) && abi_version(&major, &minor) == 0 && major >= 1) {
    return MpiAbi::kStandard;
  }
  return dlsym(library, "ompi_mpi_byte") ? MpiAbi::kOpenMpi : MpiAbi::kMpich;
}

Status missing(const MpiLibrary& library, const std::string& name) {
  return Status(Code::kUnsupported, "the MPI library " + library.path + " has no " + name);
}

Status check_thread_level(const MpiLibrary& library) {
  int (*query_thread)(int*) = nullptr;
  if (!resolve(library.handle, "MPI_Query_thread", &query_thread)) return missing(library, "MPI_Query_thread");
  int level = -1;
  query_thread(&level);
  const int serialized = library.abi == MpiAbi::kStandard ? 2048 : 2;
  if (level >= serialized) return Status::ok();
  return Status(Code::kUnsupported,
                "MPI was initialised without enough support for threads: ringreduce calls it from a thread of its "
                "own, which needs MPI_THREAD_SERIALIZED or MPI_THREAD_MULTIPLE (mpi4py's default); see "
                "mpi4py.rc.thread_level");
}

template <class Handle>
Status load_functions(const MpiLibrary& library, MpiApi<Handle>* api) {
  if (!resolve(library.handle, "MPI_Isend", &api->isend)) return missing(library, "MPI_Isend");
  if (!resolve(library.handle, "MPI_Irecv", &api->irecv)) return missing(library, "MPI_Irecv");
  if (!resolve(library.handle, "MPI_Test", &api->test)) return missing(library, "MPI_Test");
  if (!resolve(library.handle, "MPI_Iprobe", &api->iprobe)) return missing(library, "MPI_Iprobe");
  if (!resolve(library.handle, "MPI_Cancel", &api->cancel)) return missing(library, "MPI_Cancel");
  if (!resolve(library.handle, "MPI_Request_free", &api->request_free)) return missing(library, "MPI_Request_free");
  if (!resolve(library.handle, "MPI_Error_string", &api->error_string)) return missing(library, "MPI_Error_string");
  if (!resolve(library.handle, "MPI_Finalized", &api->finalized)) return missing(library, "MPI_Finalized");
  return Status::ok();
}

}  // namespace

Status find_mpi(MpiLibrary* out) {
  bool finalized = false;
  std::vector<std::string> paths;
  list_candidates(&paths);
  for (const std::string& path : paths) {
    void* handle = dlopen(path.empty() ? nullptr : path.c_str(), RTLD_NOLOAD | RTLD_NOW);
    if (!handle) continue;
    if (says_yes(handle, "MPI_Initialized")) {
      finalized = says_yes(handle, "MPI_Finalized");
      if (!finalized) {
        *out = {handle, path.empty() ? "(this program)" : path, abi_of(handle)};
        return check_thread_level(*out);
      }
    }
    dlclose(handle);
  }
  if (finalized) return Status(Code::kSystem, "MPI has been finalised already");
  return Status(Code::kSystem, "no initialised MPI library in this process: import mpi4py.MPI first");
}

Status load_mpi_api(const MpiLibrary& library, MpiApi<void*>* out) {
  RR_TRY(load_functions(library, out));
  const bool standard = library.abi == MpiAbi::kStandard;
  out->byte = standard ? reinterpret_cast<void*>(uintptr_t{0x247}) : dlsym(library.handle, "ompi_mpi_byte");
  out->status_ignore = nullptr;
  return Status::ok();
}

Status load_mpi_api(const MpiLibrary& library, MpiApi<int>* out) {
  RR_TRY(load_functions(library, out));
  out->byte = 0x4c00010d;
  out->status_ignore = reinterpret_cast<void*>(uintptr_t{1});
  return Status::ok();
}

}  // namespace ringreduce
