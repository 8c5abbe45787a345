#include "engine/death_watch.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <system_error>

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

namespace ringreduce {

DeathWatch::DeathWatch(std::vector<int> pidfds, std::function<void()> tell) : fds_(std::move(pidfds)), tell_(std::move(tell)) {
  fds_.erase(std::remove(fds_.begin(), fds_.end(), -1), fds_.end());
  if (fds_.empty()) return;
  end_ = eventfd(0, EFD_CLOEXEC);
  if (end_ < 0) return;  // whoever waits looks now and then, too
  // Signals are for the program's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error&) {
    stop();  // there are too many threads: as without an eventfd
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void DeathWatch::run() {
  std::vector<pollfd> polled{{end_, POLLIN, 0}};
  for (int fd : fds_) polled.push_back({fd, POLLIN, 0});
  while (!polled[0].revents) {
    if (poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) return;
    bool ended = false;
    for (size_t i = 1; i < polled.size(); ++i) {
      if (!polled[i].revents) continue;
      polled[i].fd = -1;  // poll() passes over it
      polled[i].revents = 0;
      ended = true;
    }
    if (!ended) continue;
    news_.store(true, std::memory_order_release);
    tell_();
  }
}

void DeathWatch::stop() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    while (write(end_, &one, sizeof one) < 0 && errno == EINTR) {}
    thread_.join();
  }
  if (end_ >= 0) close(end_);
  end_ = -1;
}

}  // namespace ringreduce
