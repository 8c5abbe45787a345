#include "gpu/endings.h"

#include <chrono>

namespace ringreduce {

Endings::~Endings() {
  for (std::thread& thread : threads_) thread.detach();
}

void Endings::start(std::shared_ptr<Device> device, NcclComm comm, int (*end)(NcclComm)) {
  wait(0);  // joins those that are over: a thread keeps its stack until then
  std::lock_guard<std::mutex> lock(gate_->mutex);
  ++gate_->left;
  threads_.emplace_back([gate = gate_, device = std::move(device), comm, end] {
    {
      device->make_current();
      Device::Scope scope(*device);
      end(comm);
    }
    std::lock_guard<std::mutex> lock(gate->mutex);
    if (!--gate->left) gate->changed.notify_all();
  });
}

void Endings::wait(double most_s) {
  std::vector<std::thread> over;
  {
    std::unique_lock<std::mutex> lock(gate_->mutex);
    if (!gate_->changed.wait_for(lock, std::chrono::duration<double>(most_s), [this] { return !gate_->left; })) return;
    over.swap(threads_);
  }
  for (std::thread& thread : over) thread.join();
}

}  // namespace ringreduce
