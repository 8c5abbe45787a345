// Time that never jumps.
#pragma once

#include <chrono>
#include <cstdint>

namespace ringreduce {

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline int64_t to_ns(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

}  // namespace ringreduce
