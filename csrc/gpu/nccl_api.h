// All that ringreduce asks of NCCL: one table of functions, filled from the libnccl that is found
// at run time (library.h), or from the double of the tests (tests/doubles/). The declarations are
// NCCL's public ABI in our own words, so that the core is built without NCCL's header.
//
// Functions return ncclResult_t. A call on a nonblocking communicator may answer kNcclInProgress, and
// its outcome is then asked for with comm_get_async_error.
#pragma once

#include <climits>
#include <cstddef>

namespace ringreduce {

using NcclComm = struct NcclCommOpaque*;

enum NcclResult : int {
  kNcclSuccess = 0,
  kNcclUnhandledCudaError = 1,
  kNcclSystemError = 2,
  kNcclInternalError = 3,
  kNcclInvalidArgument = 4,
  kNcclInvalidUsage = 5,
  kNcclRemoteError = 6,
  kNcclInProgress = 7,
};

enum NcclDType : int {
  kNcclNone = -1,  // NCCL has no such type
  kNcclInt8 = 0, kNcclUint8 = 1, kNcclInt32 = 2, kNcclUint32 = 3, kNcclInt64 = 4, kNcclUint64 = 5,
  kNcclFloat16 = 6, kNcclFloat32 = 7, kNcclFloat64 = 8, kNcclBfloat16 = 9,  // bfloat16: since 2.10
};

inline size_t nccl_size(NcclDType dtype) {
  static constexpr size_t kSizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return kSizes[dtype];
}

enum NcclRedOp : int { kNcclSum = 0, kNcclProd = 1, kNcclMax = 2, kNcclMin = 3, kNcclAvg = 4 };

struct NcclUniqueId {
  char internal[128];
};

// ncclConfig_t as of NCCL 2.14; newer libraries read `version` and take their defaults for what
// came later.
struct NcclConfig {
  size_t size = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21400;
  int blocking = 0;
  int cga_cluster_size = INT_MIN;  // undefined; fills what would be padding
};

struct NcclApi {
  // Before, a nonblocking call that goes on is kept in thread-local data, which the thread's next call
  // overwrites, whatever its communicator.
  static constexpr int kOldest = 22700;
  static constexpr int kNoColor = -1;             // NCCL_SPLIT_NOCOLOR

  int (*get_version)(int* version);               // 2.14.3 is 21403
  const char* (*get_error_string)(int result);
  const char* (*get_last_error)(NcclComm comm);   // comm may be null
  int (*get_unique_id)(NcclUniqueId* id);
  int (*comm_init_rank_config)(NcclComm* comm, int size, NcclUniqueId id, int rank, NcclConfig* config);
  int (*comm_split)(NcclComm comm, int color, int key, NcclComm* out, NcclConfig* config);
  int (*comm_destroy)(NcclComm comm);
  int (*comm_abort)(NcclComm comm);
  int (*comm_get_async_error)(NcclComm comm, int* result);
  int (*all_reduce)(const void* in, void* out, size_t count, int dtype, int op, NcclComm comm, void* stream);
  int (*broadcast)(const void* in, void* out, size_t count, int dtype, int root, NcclComm comm, void* stream);
  int (*all_gather)(const void* in, void* out, size_t count, int dtype, NcclComm comm, void* stream);
  int (*reduce_scatter)(const void* in, void* out, size_t count, int dtype, int op, NcclComm comm, void* stream);
  int (*send)(const void* in, size_t count, int dtype, int peer, NcclComm comm, void* stream);
  int (*recv)(void* out, size_t count, int dtype, int peer, NcclComm comm, void* stream);
  int (*group_start)();
  int (*group_end)();
};

}  // namespace ringreduce
