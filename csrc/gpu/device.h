// This rank's GPU: what the operations need of it, as objects that free themselves and calls that
// give a Status. Usable from every thread.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/status.h"
#include "gpu/library.h"

namespace ringreduce {

// An event of CUDA's; goes back to its device's pool with its last owner (a stream that waits for
// it already holds on to what was recorded). Null: nothing to wait for.
using Event = std::shared_ptr<void>;
// A stream of CUDA's; goes back to the process's pool with its last owner. None is ever destroyed:
// torch's allocator records events on streams that tensors were used on, whenever such a tensor dies.
using GpuStream = std::shared_ptr<void>;

class Device : public std::enable_shared_from_this<Device> {
 public:
  static Status open(std::shared_ptr<const GpuLibrary> library, int index, std::shared_ptr<Device>* device);
  ~Device();

  const GpuLibrary& library() const { return *library_; }
  const CudaApi& cuda() const { return *library_->cuda; }
  int index() const { return index_; }
  const std::string& pci() const { return pci_; }

  // CUDA's calls refer to the calling thread's current device, which the user may have set to
  // another one: it is ours while a Scope lives, and stays so if the other (a thread's first is GPU 0) is
  // not in use, as going back would cost memory on it. Nor does what is called meanwhile break a graph that
  // the user's thread captures.
  class Scope {
   public:
    explicit Scope(const Device& device) : cuda_(device.cuda()), index_(device.index()) {
      if (cuda_.get_device(&before_) != kCudaSuccess) before_ = index_;
      cuda_.set_device(index_);
      cuda_.exchange_capture_mode(&mode_);
    }
    ~Scope() {
      cuda_.exchange_capture_mode(&mode_);
      if (before_ != index_ && cuda_.device_in_use(before_)) cuda_.set_device(before_);
    }
    Scope(const Scope&) = delete;

   private:
    const CudaApi& cuda_;
    int index_, before_ = 0, mode_ = kCudaRelaxed;
  };

  // For threads of ours: this GPU is current from here on. A Scope would go back to GPU 0 there, and
  // so leave a context of every process on it.
  void make_current() const { cuda().set_device(index_); }

  // `what` was being done, for the message.
  Status check(int error, const char* what) const;

  Status create_stream(GpuStream* stream);
  Status record(void* stream, Event* event);
  Status wait_for(void* stream, const Event& event) const;  // the stream waits
  Status order(void* before, void* after);  // `after` waits for what is on `before` now
  Status reached(const Event& event, bool* reached) const;
  bool capturing(void* stream) const;

  // Freed in the order of `stream`, so that what was enqueued there before may still use it.
  Status allocate(size_t bytes, const GpuStream& stream, std::shared_ptr<char>* memory);
  // Pinned host memory from a pool.
  Status pinned(size_t bytes, std::shared_ptr<char>* memory);
  // Pins memory that `owner` keeps, until *pin is dropped.
  Status pin(char* memory, size_t bytes, std::shared_ptr<void> owner, std::shared_ptr<void>* pin);
  Status copy(void* dst, const void* src, size_t bytes, void* stream) const;

 private:
  Device(std::shared_ptr<const GpuLibrary> library, int index) : library_(std::move(library)), index_(index) {}

  std::shared_ptr<const GpuLibrary> library_;
  int index_;
  std::string pci_;
  std::mutex mutex_;           // of the pools
  std::vector<void*> events_;
  struct Pinned {
    size_t bytes;
    char* data;
  };
  std::vector<Pinned> pinned_;
};

}  // namespace ringreduce
