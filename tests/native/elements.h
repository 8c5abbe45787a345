// Memory and elements for tests of kernels.
#pragma once

#include <algorithm>
#include <random>

#include "kernel_oracle.h"

namespace ringreduce {
namespace oracle {

// Any bits at all for one element in eight (NaN, infinities, subnormals, extreme integers),
// numbers of ordinary size for the others.
inline Bytes random_elements(DType dtype, size_t count, std::mt19937_64* random) {
  Bytes bytes(count * info(dtype).size);
  for (char& byte : bytes) byte = static_cast<char>((*random)());
  with_type(dtype, [&](auto type) {
    using E = decltype(type);
    for (size_t i = 0; i < count; ++i) {
      if ((*random)() % 8 == 0) continue;
      const int small = static_cast<int>((*random)() % 2001) - 1000;
      typename E::Memory memory;
      if constexpr (std::is_floating_point_v<typename E::Work>) {
        memory = E::write(static_cast<typename E::Work>(small) / 64);
      } else {
        memory = E::write(static_cast<typename E::Work>(small));
      }
      std::memcpy(bytes.data() + i * sizeof(memory), &memory, sizeof(memory));
    }
  });
  return bytes;
}

// Memory for some bytes at a chosen distance from a cache line, which knows what lies around it.
class Fenced {
 public:
  static constexpr size_t kFence = 64;
  static constexpr char kMark = 0x5a;

  Fenced(size_t bytes, size_t offset) : bytes_(bytes), memory_(bytes + offset + 3 * kFence, kMark) {
    const size_t to_line = -reinterpret_cast<uintptr_t>(memory_.data()) % kFence;
    start_ = memory_.data() + to_line + kFence + offset;
  }
  Fenced(const Bytes& content, size_t offset) : Fenced(content.size(), offset) {
    std::copy(content.begin(), content.end(), start_);
  }
  Fenced(Fenced&&) = default;

  char* data() { return start_; }
  Bytes content() const { return Bytes(start_, start_ + bytes_); }
  bool fences_stand() const {
    return std::all_of(memory_.data(), static_cast<const char*>(start_), is_mark) &&
           std::all_of(static_cast<const char*>(start_) + bytes_, memory_.data() + memory_.size(), is_mark);
  }

 private:
  static bool is_mark(char byte) { return byte == kMark; }
  size_t bytes_;
  Bytes memory_;
  char* start_;
};

// An element of a floating-point dtype; float64 holds them all.
inline double value_of(DType dtype, const char* memory) {
  double value = 0;
  with_type(dtype, [&](auto type) {
    using E = decltype(type);
    if constexpr (std::is_floating_point_v<typename E::Work>) {
      typename E::Memory element;
      std::memcpy(&element, memory, sizeof(element));
      value = E::read(element);
    }
  });
  return value;
}

// The element nearest to `value`.
inline void put(DType dtype, double value, char* memory) {
  const auto store = [&](auto element) { std::memcpy(memory, &element, sizeof(element)); };
  switch (dtype) {
    case DType::kFloat16: return store(nearest16(value, half_value, 0x7c00, 0x1p16));
    case DType::kBFloat16: return store(nearest16(value, bfloat_value, 0x7f80, 0x1p128));
    case DType::kFloat32: return store(static_cast<float>(value));
    default: return store(value);
  }
}

}  // namespace oracle
}  // namespace ringreduce
