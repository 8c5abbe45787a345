// A CUDA without a GPU: host memory, a thread for each stream (streams.h), the real kernels' bodies
// (csrc/gpu/cuda/emulate.h). Exports what the real library exports (csrc/gpu/cuda_api.h) and control.h.
#include "gpu/cuda_api.h"

#include <atomic>
#include <cstdio>

#include "gpu/cuda/emulate.h"
#include "handles.h"
#include "memory.h"

namespace ringreduce::doubles {

namespace {

thread_local int current_device = 0;

// Begins each function of the table: counts the call; a fault that was ordered is its answer.
#define RR_ENTER(stream) \
  if (const int ordered = rr_double_enter(__func__, stream)) return ordered

// --- devices -------------------------------------------------------------------------------------

const char* error_text(int error) {
  switch (error) {
    case kSuccess: return "no error";
    case kInvalidValue: return "invalid argument";
    case kOutOfMemory: return "out of memory";
    case kNoDevice: return "no CUDA-capable device is detected";
    case kInvalidDevice: return "invalid device ordinal";
    case kInvalidHandle: return "invalid resource handle";
    case kNotReady: return "device not ready";
    case 700: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    case kCaptureUnsupported: return "operation not permitted when stream is capturing";
    case kCaptureUnjoined: return "capturing stream has unjoined work";
    case kCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case kCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    default: return "an error that a test ordered";
  }
}

int devices() { return rr_double_get("driver_version") ? static_cast<int>(rr_double_get("devices")) : 0; }

int driver_version(int* version) {
  RR_ENTER(nullptr);
  *version = static_cast<int>(rr_double_get("driver_version"));
  return kSuccess;
}

int runtime_version(int* version) {
  RR_ENTER(nullptr);
  *version = 13000;
  return kSuccess;
}

int device_count(int* count) {
  RR_ENTER(nullptr);
  *count = devices();
  return *count ? kSuccess : kNoDevice;
}

// Whether the process has a context there, to its end.
std::atomic<bool>& in_use(int device) {
  static std::atomic<bool> used[1024];
  return used[device];
}

int get_device(int* device) {
  RR_ENTER(nullptr);
  *device = current_device;
  return kSuccess;
}

int set_device(int device) {
  RR_ENTER(nullptr);
  if (device < 0 || device >= devices()) return misuse(kInvalidDevice, "set_device: there is no such GPU");
  current_device = device;
  in_use(device) = true;
  return kSuccess;
}

int device_in_use(int device) {
  RR_ENTER(nullptr);
  return in_use(device);
}

int pci_bus_id(int device, char* text, int size) {
  RR_ENTER(nullptr);
  if (device < 0 || device >= devices()) return kInvalidDevice;
  const int number = static_cast<int>(rr_double_get("first_device")) + (rr_double_get("same_pci") ? 0 : device);
  std::snprintf(text, size, "0000:%02x:00.0", 0x10 + number);
  return kSuccess;
}

int device_name(int device, char* text, int size) {
  RR_ENTER(nullptr);
  if (device < 0 || device >= devices()) return kInvalidDevice;
  std::snprintf(text, size, "a double of a GPU");
  return kSuccess;
}

// --- streams and events --------------------------------------------------------------------------

int stream_create(void** stream) {
  RR_ENTER(nullptr);
  *stream = rr_double_stream_create();
  return kSuccess;
}

int stream_synchronize(void* stream) {
  RR_ENTER(stream);
  rr_double_count_up("host_sync");
  RR_STREAM(found, find_stream);
  if (found->graph()) return misuse(kCaptureUnsupported, "stream_synchronize: the stream is capturing");
  found->wait(found->enqueued());
  return kSuccess;
}

int stream_wait_event(void* stream, void* event) {
  RR_ENTER(stream);
  RR_STREAM(found, find_stream);
  const auto waited = find_event(event, __func__);
  return waited ? waited->make_wait(found) : kInvalidHandle;
}

int stream_is_capturing(void* stream, int* capturing) {
  RR_ENTER(stream);
  RR_STREAM(found, find_stream);
  *capturing = found->graph() != nullptr;
  return kSuccess;
}

int event_create(void** event) {
  RR_ENTER(nullptr);
  auto made = std::make_shared<Event>(current_device);
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().events[*event = made.get()] = made;
  return kSuccess;
}

int event_destroy(void* event) {
  RR_ENTER(nullptr);
  if (!find_event(event, __func__)) return kInvalidHandle;
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().events.erase(event);
  return kSuccess;
}

int event_record(void* event, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_stream);
  const auto recorded = find_event(event, __func__);
  return recorded ? recorded->record(found) : kInvalidHandle;
}

int event_query(void* event) {
  RR_ENTER(nullptr);
  const auto found = find_event(event, __func__);
  return found ? found->query() : kInvalidHandle;
}

// --- memory --------------------------------------------------------------------------------------

int malloc_async(void** memory, size_t bytes, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_own_stream);
  if (!bytes) return misuse(kInvalidValue, "malloc_async: of no bytes");
  *memory = Memory::get().allocate(bytes, Memory::Kind::kDevice);
  return *memory ? kSuccess : kOutOfMemory;
}

int free_async(void* memory, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_stream);
  if (!Memory::get().begin_free(memory, Memory::Kind::kDevice))
    return misuse(kInvalidValue, "free_async: not memory of malloc_async, or freed already");
  // A graph keeps its memory: it may run again.
  if (!found->graph()) found->push([memory] { Memory::get().finish_free(memory); });
  return kSuccess;
}

int host_malloc(void** memory, size_t bytes) {
  RR_ENTER(nullptr);
  rr_double_count_up("host_sync");
  *memory = Memory::get().allocate(bytes, Memory::Kind::kPinned);
  return *memory ? kSuccess : kOutOfMemory;
}

int host_free(void* memory) {
  RR_ENTER(nullptr);
  rr_double_count_up("host_sync");
  if (!Memory::get().begin_free(memory, Memory::Kind::kPinned))
    return misuse(kInvalidValue, "host_free: not memory of host_malloc, or freed already");
  Memory::get().finish_free(memory);
  return kSuccess;
}

// Pages of one process are pinned once, as with CUDA.
int host_register(void* memory, size_t bytes) {
  RR_ENTER(nullptr);
  rr_double_count_up("host_sync");
  return Pins::get().add(memory, bytes) ? kSuccess : misuse(kAlreadyPinned, "host_register: some of it is pinned already");
}

int host_unregister(void* memory) {
  RR_ENTER(nullptr);
  rr_double_count_up("host_sync");
  return Pins::get().remove(memory) ? kSuccess : misuse(kInvalidValue, "host_unregister: not what host_register was given");
}

int copy_async(void* dst, const void* src, size_t bytes, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_stream);
  found->push([dst, src, bytes] {
    rr_double_check_memory(src, bytes, "copy_async (source)");
    rr_double_check_memory(dst, bytes, "copy_async (destination)");
    if (bytes) std::memmove(dst, src, bytes);
  });
  return kSuccess;
}

// --- kernels -------------------------------------------------------------------------------------

// Runs the bodies of the real kernels on the stream's thread, with the parameters of the call.
struct OnStream {
  static constexpr bool kLargeParameters = true;
  Stream* stream;
  bool large_parameters() const { return true; }
  template <class Body>
  int run(const typename Body::Parameters& parameters, uint64_t blocks) const {
    rr_double_count_up("launch");
    stream->push([parameters, blocks] { gpu::HostLaunch{}.run<Body>(parameters, blocks); });
    return kSuccess;
  }
};

// Looked at when the stream gets there, as the kernel would look at it.
struct Range {
  const void* memory;
  size_t bytes;
};
void push_check(Stream* stream, std::vector<Range> ranges, const char* function) {
  stream->push([ranges = std::move(ranges), function] {
    for (const Range& range : ranges) rr_double_check_memory(range.memory, range.bytes, function);
  });
}

void push_check(Stream* stream, const PackArgs& args, const char* function) {
  const size_t size = info(args.bucket_dtype).size;
  std::vector<Range> ranges;
  for (const PackItem* item = args.items; item < args.items + args.item_count; ++item) {
    ranges.push_back({item->tensor, item->count * info(args.tensor_dtype).size});
    ranges.push_back({static_cast<char*>(args.bucket) + item->offset * size, item->count * size});
  }
  push_check(stream, std::move(ranges), function);
}

int pack(const PackArgs* args, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_own_stream);
  push_check(found.get(), *args, __func__);
  return gpu::pack_or_unpack(*args, true, OnStream{found.get()});
}

int unpack(const PackArgs* args, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_own_stream);
  push_check(found.get(), *args, __func__);
  return gpu::pack_or_unpack(*args, false, OnStream{found.get()});
}

int reduce(const DeviceReduceArgs* args, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_own_stream);
  const size_t bytes = args->count * info(args->dtype).size;
  std::vector<Range> ranges{{args->dst, bytes}};
  for (int i = 0; i < args->src_count; ++i) ranges.push_back({args->src[i], bytes});
  push_check(found.get(), std::move(ranges), __func__);
  return gpu::reduce_sources(*args, OnStream{found.get()});
}

int merge_rows(const MergeRowsArgs* args, void* stream) {
  RR_ENTER(stream);
  RR_STREAM(found, find_own_stream);
  std::vector<Range> ranges{{args->out, args->out_rows * args->width * info(args->dtype).size},
                            {args->first, (args->out_rows + 1) * sizeof(int64_t)}};
  push_check(found.get(), std::move(ranges), __func__);
  return gpu::merge_all_rows(*args, OnStream{found.get()});
}

void load_kernels() { rr_double_count_up("load_kernels"); }

int exchange_capture_mode(int* mode) {
  static thread_local int current = 0;
  std::swap(current, *mode);
  return kCudaSuccess;
}

constexpr CudaApi kApi = {
    CudaApi::kVersion, true,
    error_text, driver_version, runtime_version, device_count, get_device, set_device, device_in_use, pci_bus_id, device_name,
    stream_create, stream_synchronize, stream_wait_event, stream_is_capturing,
    event_create, event_destroy, event_record, event_query,
    malloc_async, free_async, host_malloc, host_free, host_register, host_unregister, copy_async,
    pack, unpack, reduce, merge_rows, load_kernels, exchange_capture_mode,
};

}  // namespace
}  // namespace ringreduce::doubles

extern "C" RR_DOUBLE_EXPORT const ringreduce::CudaApi* ringreduce_cuda_api() { return &ringreduce::doubles::kApi; }
int rr_double_current_device() { return ringreduce::doubles::current_device; }
void rr_double_use_device(int device) { ringreduce::doubles::current_device = device; }
