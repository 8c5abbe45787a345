// Numbers as messages show them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace ringreduce {

// "0.25 s"
inline std::string show_seconds(int64_t ns) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", ns / 1e9);
  return text;
}

}  // namespace ringreduce
