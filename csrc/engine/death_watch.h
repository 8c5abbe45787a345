// Wakes this rank when a process of its host ends. A futex cannot wait for that, so a thread of its own sleeps in poll()
// on the processes' pidfds and tells; what it means is for Liveness to say.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace ringreduce {

class DeathWatch {
 public:
  // `tell` is called on the watch's thread, once for each process. The pidfds (-1: none) stay open until stop().
  DeathWatch(std::vector<int> pidfds, std::function<void()> tell);
  ~DeathWatch() { stop(); }
  void stop();

  bool news() const { return news_.load(std::memory_order_acquire); }
  void seen() { news_.store(false, std::memory_order_relaxed); }  // before looking

 private:
  void run();

  std::vector<int> fds_;
  const std::function<void()> tell_;
  std::atomic<bool> news_{false};
  int end_ = -1;  // an eventfd
  std::thread thread_;
};

}  // namespace ringreduce
