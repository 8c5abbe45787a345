#include "common/deadline.h"

#include <chrono>
#include <utility>

#include <unistd.h>

namespace ringreduce {

Deadline::Deadline(double seconds, std::string message)
    : message_(std::move(message)), thread_([this, seconds] { keep_time(seconds); }) {}

void Deadline::say(std::string message) {
  std::lock_guard<std::mutex> lock(mutex_);
  message_ = std::move(message);
}

void Deadline::cancel() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_cancelled_ = true;
  }
  cancelled_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Deadline::keep_time(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (cancelled_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return is_cancelled_; })) return;
  message_ += '\n';
  for (size_t at = 0; at < message_.size();) {
    const ssize_t written = write(STDERR_FILENO, message_.data() + at, message_.size() - at);
    if (written <= 0) break;
    at += static_cast<size_t>(written);
  }
  // Not exit(): its handlers would wait for the thread that is stuck, and MPI_Finalize for ranks that are not there.
  _exit(1);
}

}  // namespace ringreduce
