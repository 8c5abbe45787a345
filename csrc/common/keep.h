// Memory that a transfer in flight may still touch after its owner has gone: kept until the
// process ends, and reachable, so that leak checkers know it is meant.
#pragma once

#include <exception>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ringreduce {

inline void keep_for_good(std::shared_ptr<void> memory) noexcept {
  union Leaked {  // without a destructor
    explicit Leaked(std::shared_ptr<void> taken) noexcept : memory(std::move(taken)) {}
    ~Leaked() {}
    std::shared_ptr<void> memory;
  };
  try {
    static std::mutex mutex;
    static auto* kept = new std::vector<std::shared_ptr<void>>;
    std::lock_guard<std::mutex> lock(mutex);
    kept->push_back(memory);
  } catch (const std::exception&) {
    Leaked leaked(std::move(memory));  // no memory to remember it by
  }
}

}  // namespace ringreduce
