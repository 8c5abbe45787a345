// Communicators that NCCL is ending, each on a thread, which may take for ever: then it is left behind.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "gpu/device.h"

namespace ringreduce {

class Endings {
 public:
  ~Endings();
  // Calls end(comm) with `device` current.
  void start(std::shared_ptr<Device> device, NcclComm comm, int (*end)(NcclComm));
  void wait(double most_s);  // until all are over

 private:
  struct Gate {
    std::mutex mutex;
    std::condition_variable changed;
    int left = 0;
  };
  std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();  // lives as long as the last thread
  std::vector<std::thread> threads_;
};

}  // namespace ringreduce
