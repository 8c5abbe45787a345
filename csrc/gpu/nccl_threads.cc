#include "gpu/nccl_threads.h"

#include <chrono>

namespace ringreduce {

NcclThreads::~NcclThreads() {
  for (std::thread& thread : threads_) thread.detach();
}

void NcclThreads::start(std::shared_ptr<Device> device, std::function<void()> body) {
  wait(0);  // joins those that are over: a thread keeps its stack until then
  std::lock_guard<std::mutex> lock(gate_->mutex);
  ++gate_->left;
  threads_.emplace_back([gate = gate_, device = std::move(device), body = std::move(body)]() mutable {
    {
      device->make_current();
      Device::Scope scope(*device);
      body();
      body = nullptr;  // what it holds on to goes here, with the device current
    }
    std::lock_guard<std::mutex> lock(gate->mutex);
    if (!--gate->left) gate->changed.notify_all();
  });
}

void NcclThreads::wait(double most_s) {
  std::vector<std::thread> over;
  {
    std::unique_lock<std::mutex> lock(gate_->mutex);
    if (!gate_->changed.wait_for(lock, std::chrono::duration<double>(most_s), [this] { return !gate_->left; })) return;
    over.swap(threads_);
  }
  for (std::thread& thread : over) thread.join();
}

}  // namespace ringreduce
