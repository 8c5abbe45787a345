// Threads of ours for calls of NCCL that wait for other ranks, or for the GPU. Each may take for ever: then
// it is left behind.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "gpu/device.h"

namespace ringreduce {

class NcclThreads {
 public:
  ~NcclThreads();
  // Runs body() with `device` current.
  void start(std::shared_ptr<Device> device, std::function<void()> body);
  void wait(double most_s);  // until all are over

 private:
  struct Gate {
    std::mutex mutex;
    std::condition_variable changed;
  };
  struct One {
    std::thread thread;
    std::shared_ptr<bool> over;
  };
  bool all_over() const;
  void join_those_over();

  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();  // lives as long as the last thread
  std::list<One> threads_;
};

}  // namespace ringreduce
