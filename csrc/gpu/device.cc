#include "gpu/device.h"

#include <map>

namespace ringreduce {

namespace {

// Those that nobody uses now, of each GPU of the process. Streams outlive every Device.
struct IdleStreams {
  std::mutex mutex;
  std::map<std::pair<const CudaApi*, int>, std::vector<void*>> of_gpu;

  void* take(const Device& device) {
    std::lock_guard<std::mutex> lock(mutex);
    std::vector<void*>& streams = of_gpu[{&device.cuda(), device.index()}];
    if (streams.empty()) return nullptr;
    void* stream = streams.back();
    streams.pop_back();
    return stream;
  }
  void give(const Device& device, void* stream) {
    std::lock_guard<std::mutex> lock(mutex);
    of_gpu[{&device.cuda(), device.index()}].push_back(stream);
  }
};

IdleStreams& idle_streams() {
  static IdleStreams& all = *new IdleStreams;  // used by whatever dies last
  return all;
}

size_t power_of_two(size_t bytes) {
  size_t size = 4096;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

Status Device::open(std::shared_ptr<const GpuLibrary> library, int index, std::shared_ptr<Device>* device) {
  std::shared_ptr<Device> opened(new Device(std::move(library), index));
  int count = 0;
  RR_TRY(opened->check(opened->cuda().device_count(&count), "looking for GPUs"));
  if (index < 0 || index >= count)
    return {Code::kInvalid, "GPU " + std::to_string(index) + " does not exist; this process sees " + std::to_string(count)};
  char pci[32] = {};
  RR_TRY(opened->check(opened->cuda().pci_bus_id(index, pci, sizeof pci), "reading the PCI id"));
  opened->pci_ = pci;
  Scope scope(*opened);
  opened->cuda().load_kernels();
  *device = std::move(opened);
  return Status::ok();
}

Device::~Device() {
  Scope scope(*this);
  for (void* event : events_) cuda().event_destroy(event);
  for (const Pinned& block : pinned_) cuda().host_free(block.data);
}

Status Device::check(int error, const char* what) const {
  if (error == kCudaSuccess) return Status::ok();
  return {Code::kSystem, "CUDA failed while " + std::string(what) + " (GPU " + std::to_string(index_) + "): " +
                             cuda().error_text(error)};
}

Status Device::record(void* stream, Event* event) {
  Scope scope(*this);
  void* raw = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!events_.empty()) {
      raw = events_.back();
      events_.pop_back();
    }
  }
  if (!raw) RR_TRY(check(cuda().event_create(&raw), "creating an event"));
  auto back = [self = shared_from_this()](void* event) {
    std::lock_guard<std::mutex> lock(self->mutex_);
    self->events_.push_back(event);
  };
  *event = Event(raw, std::move(back));
  return check(cuda().event_record(raw, stream), "recording an event");
}

Status Device::wait_for(void* stream, const Event& event) const {
  if (!event) return Status::ok();
  Scope scope(*this);
  return check(cuda().stream_wait_event(stream, event.get()), "ordering streams");
}

Status Device::order(void* before, void* after) {
  if (before == after) return Status::ok();
  Event reached;
  RR_TRY(record(before, &reached));
  return wait_for(after, reached);
}

Status Device::reached(const Event& event, bool* reached) const {
  *reached = true;
  if (!event) return Status::ok();
  Scope scope(*this);
  const int error = cuda().event_query(event.get());
  *reached = error != kCudaNotReady;
  return *reached ? check(error, "running an operation") : Status::ok();
}

bool Device::capturing(void* stream) const {
  Scope scope(*this);
  int capturing = 0;
  return cuda().stream_is_capturing(stream, &capturing) == kCudaSuccess && capturing;
}

Status Device::create_stream(GpuStream* stream) {
  Scope scope(*this);
  void* raw = idle_streams().take(*this);
  if (!raw) RR_TRY(check(cuda().stream_create(&raw), "creating a stream"));
  stream->reset(raw, [self = shared_from_this()](void* stream) { idle_streams().give(*self, stream); });
  return Status::ok();
}

Status Device::allocate(size_t bytes, const GpuStream& stream, std::shared_ptr<char>* memory) {
  Scope scope(*this);
  void* data = nullptr;
  const int error = cuda().malloc_async(&data, bytes ? bytes : 1, stream.get());
  if (error != kCudaSuccess)
    return check(error, "allocating memory").because("no GPU memory for " + std::to_string(bytes) +
                                                       " bytes (torch may keep unused memory: torch.cuda.empty_cache() gives it back)");
  memory->reset(static_cast<char*>(data), [self = shared_from_this(), stream](char* data) {
    Scope scope(*self);
    self->cuda().free_async(data, stream.get());
  });
  return Status::ok();
}

Status Device::pinned(size_t bytes, std::shared_ptr<char>* memory) {
  Scope scope(*this);
  const size_t size = power_of_two(bytes);
  char* data = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Pinned& block : pinned_) {
      if (block.bytes != size) continue;
      data = block.data;
      block = pinned_.back();
      pinned_.pop_back();
      break;
    }
  }
  if (!data) {
    void* fresh = nullptr;
    RR_TRY(check(cuda().host_malloc(&fresh, size), "allocating pinned host memory"));
    data = static_cast<char*>(fresh);
  }
  memory->reset(data, [self = shared_from_this(), size](char* data) {
    std::lock_guard<std::mutex> lock(self->mutex_);
    self->pinned_.push_back({size, data});
  });
  return Status::ok();
}

Status Device::pin(char* memory, size_t bytes, std::shared_ptr<void> owner, std::shared_ptr<void>* pin) {
  Scope scope(*this);
  RR_TRY(check(cuda().host_register(memory, bytes), "pinning host memory"));
  pin->reset(memory, [self = shared_from_this(), owner = std::move(owner)](void* memory) {
    Scope scope(*self);
    self->cuda().host_unregister(memory);
  });
  return Status::ok();
}

Status Device::copy(void* dst, const void* src, size_t bytes, void* stream) const {
  if (!bytes || dst == src) return Status::ok();
  return check(cuda().copy_async(dst, src, bytes, stream), "copying");
}

}  // namespace ringreduce
