// What the core knows of MPI's binary interface, in place of an mpi.h: a dozen prototypes and
// three constants. MPI's handles are pointers in Open MPI and in the standard ABI (MPI 5) and
// 32-bit integers in MPICH and its relatives (Intel MPI, MVAPICH, Cray MPICH), so the table
// is a template on the handle's type, filled at run time from whichever MPI is loaded.
//
//                        Open MPI          MPICH         standard ABI
//   told by              ompi_mpi_byte     the rest      MPI_Abi_get_version() >= 1
//   handle               void*             int           void*
//   MPI_BYTE             &ompi_mpi_byte    0x4c00010d    0x247
//   MPI_STATUS_IGNORE    0                 1             0
//   THREAD_SERIALIZED    2                 2             2048
#pragma once

#include <string>

#include "common/status.h"

namespace ringreduce {

template <class Handle>
struct MpiApi {
  int (*isend)(const void* data, int count, Handle type, int to, int tag, Handle comm, Handle* request);
  int (*irecv)(void* data, int count, Handle type, int from, int tag, Handle comm, Handle* request);
  int (*test)(Handle* request, int* done, void* status);
  int (*iprobe)(int from, int tag, Handle comm, int* found, void* status);
  int (*cancel)(Handle* request);
  int (*request_free)(Handle* request);
  int (*error_string)(int code, char* text, int* length);
  int (*finalized)(int* flag);
  Handle byte;
  void* status_ignore;  // an MPI_Status is never read, so its layout does not matter
};

constexpr int kMpiMaxErrorString = 1024;  // all the above stop at 512

enum class MpiAbi { kOpenMpi, kMpich, kStandard };

// The MPI that this process has loaded and initialised (by mpi4py, say).
struct MpiLibrary {
  void* handle = nullptr;  // for dlsym; held for the life of the process
  std::string path;
  MpiAbi abi = MpiAbi::kMpich;
};

// Finds it, and checks that it may be called from a thread of ours.
Status find_mpi(MpiLibrary* out);

// Resolves the functions. Handle must be the right type for library.abi.
Status load_mpi_api(const MpiLibrary& library, MpiApi<void*>* out);
Status load_mpi_api(const MpiLibrary& library, MpiApi<int>* out);

}  // namespace ringreduce
