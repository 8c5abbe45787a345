#include "gpu/nccl_threads.h"

#include <algorithm>
#include <chrono>

namespace ringreduce {

NcclThreads::~NcclThreads() {
  for (One& one : threads_) one.thread.detach();
}

void NcclThreads::start(std::shared_ptr<Device> device, std::function<void()> body) {
  std::lock_guard<std::mutex> lock(gate_->mutex);
  join_those_over();
  auto over = std::make_shared<bool>(false);
  std::thread thread([gate = gate_, over, device = std::move(device), body = std::move(body)]() mutable {
    {
      device->make_current();
      Device::Scope scope(*device);
      body();
      body = nullptr;  // what it holds on to goes here, with the device current
    }
    std::lock_guard<std::mutex> lock(gate->mutex);
    *over = true;
    gate->changed.notify_all();
  });
  threads_.push_back({std::move(thread), std::move(over)});
}

void NcclThreads::wait(double most_s) {
  std::unique_lock<std::mutex> lock(gate_->mutex);
  gate_->changed.wait_for(lock, std::chrono::duration<double>(most_s), [this] { return all_over(); });
  join_those_over();
}

bool NcclThreads::all_over() const {
  return std::all_of(threads_.begin(), threads_.end(), [](const One& one) { return *one.over; });
}

// A thread keeps its stack until then. What is left of it is to let go of the gate.
void NcclThreads::join_those_over() {
  threads_.remove_if([](One& one) {
    if (!*one.over) return false;
    one.thread.join();
    return true;
  });
}

}  // namespace ringreduce
