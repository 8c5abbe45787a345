// Memory that a transfer in flight may still touch after its owner has gone: kept until the
// process ends, and reachable, so that leak checkers know it is meant.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ringreduce {

inline void keep_for_good(std::shared_ptr<void> memory) {
  static std::mutex mutex;
  static auto* kept = new std::vector<std::shared_ptr<void>>;
  std::lock_guard<std::mutex> lock(mutex);
  kept->push_back(std::move(memory));
}

}  // namespace ringreduce
