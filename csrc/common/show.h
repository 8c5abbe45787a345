// Numbers and texts as messages show them.
#pragma once

#include <algorithm>
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

// At most `most` bytes of UTF-8 text, in whole characters.
inline size_t cut_at(const std::string& text, size_t most) {
  size_t end = std::min(text.size(), most);
  while (end < text.size() && end && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return end;
}
inline std::string cut(const std::string& text, size_t most) { return text.substr(0, cut_at(text, most)); }

}  // namespace ringreduce
