// The table that the core asks for (cuda_api.h): thin wrappers of the CUDA runtime, which is linked
// into this library, and the kernels. Nothing here needs a driver to be loaded.
#include <dlfcn.h>

#include <cstdio>
#include <mutex>

#include "gpu/cuda/kernels.h"
#include "gpu/cuda/launch.cuh"
#include "gpu/cuda_api.h"

namespace ringreduce {
namespace gpu {
namespace {

// CUDA's own words for a missing driver speak of its version.
const char* error_text(int error) {
  if (error != cudaErrorInsufficientDriver) return cudaGetErrorString(static_cast<cudaError_t>(error));
  static thread_local char text[160];
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "there is no NVIDIA driver here (libcuda.so.1 is missing or finds no kernel module)";
  std::snprintf(text, sizeof(text), "the NVIDIA driver is too old: it is made for CUDA %d.%d, and ringreduce was built with %d.%d",
                driver / 1000, driver / 10 % 100, CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
  return text;
}

int driver_version(int* version) { return forget(cudaDriverGetVersion(version)); }
int runtime_version(int* version) { return forget(cudaRuntimeGetVersion(version)); }
int device_count(int* count) { return forget(cudaGetDeviceCount(count)); }
int get_device(int* device) { return forget(cudaGetDevice(device)); }
int set_device(int device) { return forget(cudaSetDevice(device)); }

// The runtime cannot tell; the driver, which is loaded by now, can.
int device_in_use(int device) {
  using DeviceGet = int (*)(int*, int);
  using GetState = int (*)(int, unsigned int*, int*);
  static void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  static const auto device_get = driver ? reinterpret_cast<DeviceGet>(dlsym(driver, "cuDeviceGet")) : nullptr;
  static const auto get_state = driver ? reinterpret_cast<GetState>(dlsym(driver, "cuDevicePrimaryCtxGetState")) : nullptr;
  int handle = 0, active = 1;
  unsigned int flags = 0;
  if (!device_get || !get_state || device_get(&handle, device) || get_state(handle, &flags, &active)) return 1;
  return active;
}

int pci_bus_id(int device, char* text, int size) { return forget(cudaDeviceGetPCIBusId(text, size, device)); }

int device_name(int device, char* text, int size) {
  cudaDeviceProp properties;
  const int error = forget(cudaGetDeviceProperties(&properties, device));
  if (!error) std::snprintf(text, size, "%s", properties.name);
  return error;
}

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t as_event(void* event) { return static_cast<cudaEvent_t>(event); }

int stream_create(void** stream) {
  int lowest = 0, highest = 0;
  if (const int error = forget(cudaDeviceGetStreamPriorityRange(&lowest, &highest))) return error;
  cudaStream_t made = nullptr;
  const int error = forget(cudaStreamCreateWithPriority(&made, cudaStreamNonBlocking, highest));
  *stream = made;
  return error;
}

int stream_synchronize(void* stream) { return forget(cudaStreamSynchronize(as_stream(stream))); }
int stream_wait_event(void* stream, void* event) {
  return forget(cudaStreamWaitEvent(as_stream(stream), as_event(event), 0));
}

int stream_is_capturing(void* stream, int* capturing) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const int error = forget(cudaStreamIsCapturing(as_stream(stream), &status));
  *capturing = status != cudaStreamCaptureStatusNone;
  return error;
}

int event_create(void** event) {
  cudaEvent_t made = nullptr;
  const int error = forget(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
  *event = made;
  return error;
}

int event_destroy(void* event) { return forget(cudaEventDestroy(as_event(event))); }
int event_record(void* event, void* stream) { return forget(cudaEventRecord(as_event(event), as_stream(stream))); }
int event_query(void* event) { return forget(cudaEventQuery(as_event(event))); }

// Memory comes from pools of our own, which keep a little: CUDA's default one gives all that is
// unused back to the driver whenever somebody synchronises, and asking it again takes long.
constexpr int kMostDevices = 128;
constexpr uint64_t kKept = uint64_t{256} << 20;  // bytes

int make_pool(int device, cudaMemPool_t* pool) {
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  if (const int error = forget(cudaMemPoolCreate(pool, &properties))) return error;
  uint64_t kept = kKept;
  return forget(cudaMemPoolSetAttribute(*pool, cudaMemPoolAttrReleaseThreshold, &kept));
}

int malloc_async(void** memory, size_t bytes, void* stream) {
  static std::mutex mutex;
  static cudaMemPool_t pools[kMostDevices];  // of each device, made when first needed
  int device = 0;
  if (const int error = get_device(&device)) return error;
  if (device >= kMostDevices) return cudaErrorInvalidDevice;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!pools[device])
      if (const int error = make_pool(device, &pools[device])) return error;
  }
  return forget(cudaMallocFromPoolAsync(memory, bytes, pools[device], as_stream(stream)));
}

int free_async(void* memory, void* stream) { return forget(cudaFreeAsync(memory, as_stream(stream))); }
int host_malloc(void** memory, size_t bytes) { return forget(cudaHostAlloc(memory, bytes, cudaHostAllocPortable)); }
int host_free(void* memory) { return forget(cudaFreeHost(memory)); }
int host_register(void* memory, size_t bytes) {
  return forget(cudaHostRegister(memory, bytes, cudaHostRegisterPortable));
}
int host_unregister(void* memory) { return forget(cudaHostUnregister(memory)); }
int copy_async(void* dst, const void* src, size_t bytes, void* stream) {
  return forget(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, as_stream(stream)));
}

void load_kernels() {
  for (const AnyKernel* kernel = AnyKernel::first; kernel; kernel = kernel->next) {
    cudaFuncAttributes attributes;
    forget(cudaFuncGetAttributes(&attributes, kernel->function));
  }
}

int exchange_capture_mode(int* mode) {
  auto wanted = static_cast<cudaStreamCaptureMode>(*mode);
  const int error = forget(cudaThreadExchangeStreamCaptureMode(&wanted));
  *mode = wanted;
  return error;
}

constexpr CudaApi kApi = {
    CudaApi::kVersion, false,
    error_text, driver_version, runtime_version, device_count, get_device, set_device, device_in_use, pci_bus_id, device_name,
    stream_create, stream_synchronize, stream_wait_event, stream_is_capturing,
    event_create, event_destroy, event_record, event_query,
    malloc_async, free_async, host_malloc, host_free, host_register, host_unregister, copy_async,
    pack, unpack, reduce, merge_rows, load_kernels, exchange_capture_mode,
};

}  // namespace
}  // namespace gpu
}  // namespace ringreduce

extern "C" __attribute__((visibility("default"))) const ringreduce::CudaApi* ringreduce_cuda_api() {
  return &ringreduce::gpu::kApi;
}
