// What reduce() must compute, written a second time as plainly as possible: one element after
// the other, 16-bit floats through tables and exact distances, whole numbers in long double.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/kernels.h"

namespace ringreduce {
namespace oracle {

inline double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline double bfloat_value(uint16_t bfloat) {
  const int exponent = bfloat >> 7 & 255, fraction = bfloat & 127;
  const double sign = bfloat & 0x8000 ? -1 : 1;
  if (exponent == 255) return fraction ? std::nan("") : sign * INFINITY;
  return sign * (exponent ? std::ldexp(128 + fraction, exponent - 134) : std::ldexp(fraction, -133));
}

// The 16-bit float nearest to `value`. Of positive ones, the order of the codes is the order
// of the values; infinity counts as the power of two that follows the largest finite one.
inline uint16_t nearest16(double value, double (*decode)(uint16_t), uint16_t infinity, double beyond) {
  if (std::isnan(value)) return infinity + 1;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size >= beyond) return sign | infinity;
  uint16_t low = 0, high = infinity;  // decode(low) <= size < decode(high)
  while (high - low > 1) (decode((low + high) / 2) <= size ? low : high) = (low + high) / 2;
  const double below = size - decode(low), above = (high == infinity ? beyond : decode(high)) - size;
  const bool up = above < below || (above == below && high % 2 == 0);
  return sign | (up ? high : low);
}

// An element type: Memory as stored, Work as computed with.
template <typename T>
struct Number {
  using Memory = T;
  using Work = T;
  static Work read(Memory value) { return value; }
  static Memory write(Work value) { return value; }
  static Work scale(Work value, double factor) {
    if constexpr (!std::is_integral_v<T>) {
      return value * static_cast<T>(factor);
    } else {
      if (factor == 1) return value;
      const double number = static_cast<double>(value), inverse = std::round(1 / factor);
      const bool divides = std::fabs(inverse) < 1e9 && 1 / inverse == factor;
      const long double exact = std::trunc(divides ? number / inverse : number * factor);
      const long double least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
      return static_cast<T>(std::min(std::max(exact, least), most));
    }
  }
  static Work combine(Reduction reduction, Work a, Work b) {
    if (reduction == Reduction::kMin) return a != a || a < b ? a : b;
    if (reduction == Reduction::kMax) return a != a || a > b ? a : b;
    const bool sum = reduction == Reduction::kSum;
    if constexpr (std::is_integral_v<T>) {
      const uint64_t x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
      return static_cast<T>(sum ? x + y : x * y);
    } else {
      return sum ? a + b : a * b;
    }
  }
};

struct Half : Number<float> {
  using Memory = uint16_t;
  static float read(uint16_t value) { return static_cast<float>(half_value(value)); }
  static uint16_t write(float value) { return nearest16(value, half_value, 0x7c00, 65536); }
};

struct BFloat : Number<float> {
  using Memory = uint16_t;
  static float read(uint16_t value) { return static_cast<float>(bfloat_value(value)); }
  static uint16_t write(float value) { return nearest16(value, bfloat_value, 0x7f80, 0x1p128); }
};

template <typename T>
struct Complex {
  using Memory = std::complex<T>;
  using Work = Memory;
  static Work read(Memory value) { return value; }
  static Memory write(Work value) { return value; }
  static Work scale(Work v, double factor) {
    return {v.real() * static_cast<T>(factor), v.imag() * static_cast<T>(factor)};
  }
  static Work combine(Reduction reduction, Work a, Work b) {
    if (reduction == Reduction::kSum) return {a.real() + b.real(), a.imag() + b.imag()};
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
  }
};

struct Bool {
  using Memory = uint8_t;
  using Work = bool;
  static bool read(uint8_t value) { return value != 0; }
  static uint8_t write(bool value) { return value; }
  static bool scale(bool value, double) { return value; }
  static bool combine(Reduction reduction, bool a, bool b) {
    return reduction == Reduction::kSum || reduction == Reduction::kMax ? a || b : a && b;
  }
};

// Calls f(type) with the oracle's type for `dtype`.
template <class F>
void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kUint8: return f(Number<uint8_t>());
    case DType::kInt8: return f(Number<int8_t>());
    case DType::kInt16: return f(Number<int16_t>());
    case DType::kInt32: return f(Number<int32_t>());
    case DType::kInt64: return f(Number<int64_t>());
    case DType::kFloat16: return f(Half());
    case DType::kBFloat16: return f(BFloat());
    case DType::kFloat32: return f(Number<float>());
    case DType::kFloat64: return f(Number<double>());
    case DType::kComplex64: return f(Complex<float>());
    case DType::kComplex128: return f(Complex<double>());
    case DType::kBool: return f(Bool());
  }
}

using Bytes = std::vector<char>;

inline Bytes reduce(DType dtype, Reduction reduction, const std::vector<Bytes>& sources, Scale scale) {
  Bytes result(sources[0].size());
  with_type(dtype, [&](auto type) {
    using E = decltype(type);
    using Memory = typename E::Memory;
    const auto element = [&](size_t source, size_t i) {
      Memory memory;
      std::memcpy(&memory, sources[source].data() + i * sizeof(Memory), sizeof(Memory));
      return E::scale(E::read(memory), scale.pre);
    };
    for (size_t i = 0; i < result.size() / sizeof(Memory); ++i) {
      auto value = element(0, i);
      for (size_t source = 1; source < sources.size(); ++source)
        value = E::combine(reduction, value, element(source, i));
      const Memory memory = E::write(E::scale(value, scale.post));
      std::memcpy(result.data() + i * sizeof(Memory), &memory, sizeof(Memory));
    }
  });
  return result;
}

// Every bit the same, but for NaN: which NaN is nobody's promise.
inline bool same(DType dtype, const void* left, const void* right, size_t bytes) {
  bool all = true;
  const auto compare = [&](auto memory, auto read) {
    using Memory = decltype(memory);
    for (size_t at = 0; at < bytes && all; at += sizeof(Memory)) {
      Memory a, b;
      std::memcpy(&a, static_cast<const char*>(left) + at, sizeof(a));
      std::memcpy(&b, static_cast<const char*>(right) + at, sizeof(b));
      all = !std::memcmp(&a, &b, sizeof(a)) || (std::isnan(read(a)) && std::isnan(read(b)));
    }
  };
  const auto itself = [](auto value) { return value; };
  switch (dtype) {
    case DType::kFloat16: compare(uint16_t{}, half_value); break;
    case DType::kBFloat16: compare(uint16_t{}, bfloat_value); break;
    case DType::kFloat32: case DType::kComplex64: compare(float{}, itself); break;
    case DType::kFloat64: case DType::kComplex128: compare(double{}, itself); break;
    default: all = !bytes || !std::memcmp(left, right, bytes);
  }
  return all;
}

}  // namespace oracle
}  // namespace ringreduce
