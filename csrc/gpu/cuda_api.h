// All that ringreduce asks of CUDA: one table of functions. The CUDA library (csrc/gpu/cuda/,
// built by nvcc, the CUDA runtime linked in) fills it with the real ones, the tests with doubles
// on host memory (tests/doubles/). Plain C types only: the core is built without CUDA's headers.
//
// Functions that return int return cudaError_t: kCudaSuccess, kCudaNotReady, or an error that
// error_text() explains. Streams and events are cudaStream_t and cudaEvent_t as void*.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ringreduce {

constexpr int kCudaSuccess = 0;
constexpr int kCudaNotReady = 600;

// One tensor of a pack or unpack: `count` elements at `tensor`, which lie (or will lie) at element
// `offset` of the bucket.
struct PackItem {
  void* tensor;
  uint64_t offset;
  uint64_t count;
};

// pack: bucket[offset + i] = scale * tensor[i], converted to the bucket's dtype, for all items at
// once; unpack: the way back. The scale is applied in float32 (float64 where either side is
// float64), rounded once. Different dtypes are allowed among float16, bfloat16, float32 and
// float64; scales other than 1 for these only. An item may lie in its place already (the same
// address): then it is only scaled. Pointers are aligned to the element size at least. `items` is
// host memory and is read during the call only.
struct PackArgs {
  void* bucket;
  DType bucket_dtype;
  DType tensor_dtype;
  const PackItem* items;
  int item_count;
  double scale;
};

// dst = post * (pre*src[0] op pre*src[1] op ...), combined in the order of src, with the rules of
// the CPU's kernels (kernels/kernels.h): 16-bit floats accumulate in float32, whole numbers wrap
// around (scaled: in float64, truncated, the nearest that fits), NaN wins in Min and Max, bool is
// "or" and "and". `src` is host memory, read during the call only; at most kReduceSources.
struct DeviceReduceArgs {
  static constexpr int kReduceSources = 64;
  void* dst;
  const void* const* src;
  int src_count;
  uint64_t count;
  DType dtype;
  Reduction reduction;
  Scale scale;
};

// Sums rows of equal index: out[r] = scale * sum of values[order[i]] for i in [first[r], first[r+1]),
// in that order. `values` is [rows][width], `out` is [out_rows][width]. Floating-point dtypes only;
// 16-bit ones accumulate in float32. `order` and `first` (out_rows + 1 entries) are device memory.
struct MergeRowsArgs {
  void* out;
  const void* values;
  const int64_t* order;
  const int64_t* first;
  uint64_t out_rows;
  uint64_t width;
  DType dtype;
  double scale;
};

struct CudaApi {
  static constexpr int kVersion = 3;  // of this struct: core and library must agree
  int version;
  bool is_double;                     // a double of the tests: "device" memory is host memory

  const char* (*error_text)(int error);
  int (*driver_version)(int* version);   // e.g. 13000; 0 without a driver
  int (*runtime_version)(int* version);
  int (*device_count)(int* count);
  int (*get_device)(int* device);        // of the calling thread
  int (*set_device)(int device);
  int (*device_in_use)(int device);      // 1, or 0 where this process has no context on it: set_device makes one
  int (*pci_bus_id)(int device, char* text, int size);  // "0000:65:00.0"
  int (*device_name)(int device, char* text, int size);

  int (*stream_create)(void** stream);   // non-blocking towards the default stream, high priority
  int (*stream_synchronize)(void* stream);
  int (*stream_wait_event)(void* stream, void* event);
  int (*stream_is_capturing)(void* stream, int* capturing);
  int (*event_create)(void** event);     // without timing
  int (*event_destroy)(void* event);
  int (*event_record)(void* event, void* stream);
  int (*event_query)(void* event);       // kCudaSuccess: reached; kCudaNotReady

  int (*malloc_async)(void** memory, size_t bytes, void* stream);
  int (*free_async)(void* memory, void* stream);
  int (*host_malloc)(void** memory, size_t bytes);   // pinned
  int (*host_free)(void* memory);
  int (*host_register)(void* memory, size_t bytes);  // pins what exists
  int (*host_unregister)(void* memory);
  int (*copy_async)(void* dst, const void* src, size_t bytes, void* stream);  // any direction

  int (*pack)(const PackArgs* args, void* stream);
  int (*unpack)(const PackArgs* args, void* stream);
  int (*reduce)(const DeviceReduceArgs* args, void* stream);
  int (*merge_rows)(const MergeRowsArgs* args, void* stream);
  // Loads all of these kernels on the current GPU, which CUDA else does at their first launch: that may
  // wait for running kernels, such as NCCL's, which wait for a peer that waits for what is launched here.
  // One that the driver refuses says so when it is launched.
  void (*load_kernels)();

  // cudaThreadExchangeStreamCaptureMode: kCudaRelaxed lets this thread ask for events and allocate
  // while another thread captures a graph.
  int (*exchange_capture_mode)(int* mode);
};

constexpr int kCudaRelaxed = 2;

// The one symbol that the CUDA library exports.
using CudaApiFunction = const CudaApi* (*)();
constexpr const char* kCudaApiSymbol = "ringreduce_cuda_api";

}  // namespace ringreduce
