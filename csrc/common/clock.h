// Time that never jumps.
#pragma once

#include <chrono>
#include <cstdint>

namespace ringreduce {

constexpr int64_t kMillisecond = 1'000'000;  // in ns, as all times are

inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline int64_t to_ns(double seconds) { return static_cast<int64_t>(seconds * 1e9); }

}  // namespace ringreduce
