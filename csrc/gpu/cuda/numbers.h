// How elements of each dtype are read, combined, scaled and written, one at a time; the rules are
// those of kernels/lanes.h and the bits too (of NaN only that it is NaN).
//
// A type has Memory (as it lies in a tensor), Value (what is computed with) and Factor (of scales).
#pragma once

#include <limits>
#include <type_traits>

#include "common/dtype.h"
#include "common/half.h"
#include "gpu/cuda/portable.h"

namespace ringreduce {
namespace gpu {

// --- 16-bit floats: by the GPU's instructions there, by integer code on the host -----------------

RR_HD float from_half(uint16_t half) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  return half_to_float(half);
#endif
}

RR_HD uint16_t to_half(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  return float_to_half(value);
#endif
}

RR_HD uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

RR_HD float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

RR_HD float from_bfloat(uint16_t bfloat) { return bits_float(static_cast<uint32_t>(bfloat) << 16); }

RR_HD uint16_t to_bfloat(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bfloat;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bfloat) : "f"(value));
  return bfloat;
#else
  const uint32_t bits = float_bits(value), high = bits >> 16;
  return static_cast<uint16_t>(value != value ? high | 0x40 : (bits + 0x7fff + (high & 1)) >> 16);
#endif
}

// float64 to float32, rounded to odd: of the two neighbours the one whose last bit is 1. Rounding
// that to a 16-bit float then gives what rounding once would.
RR_HD float to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const double back = static_cast<double>(nearest);
  uint32_t bits = float_bits(nearest);
  if (back == value || value != value || bits & 1) return nearest;
  const bool too_long = (back < 0 ? -back : back) > (value < 0 ? -value : value);
  bits = too_long ? bits - 1 : bits + 1;
  // A zero from an underflow keeps its sign: its magnitude only grows.
  return bits_float(bits);
}

RR_HD float narrow(float value) { return value; }
RR_HD float narrow(double value) { return to_odd(value); }

// --- the types -----------------------------------------------------------------------------------

struct Float16 {
  using Memory = uint16_t;
  using Value = float;
  RR_HD static float read(uint16_t memory) { return from_half(memory); }
  template <typename C>
  RR_HD static uint16_t write(C value) { return to_half(narrow(value)); }
};

struct BFloat16 {
  using Memory = uint16_t;
  using Value = float;
  RR_HD static float read(uint16_t memory) { return from_bfloat(memory); }
  template <typename C>
  RR_HD static uint16_t write(C value) { return to_bfloat(narrow(value)); }
};

template <typename T>
struct Float {
  using Memory = T;
  using Value = T;
  RR_HD static T read(T memory) { return memory; }
  template <typename C>
  RR_HD static T write(C value) { return static_cast<T>(value); }
};

// What the reduce needs beside: how two values are combined.
template <class Type>
struct Real : Type {
  using Value = typename Type::Value;
  using Factor = Value;
  static constexpr bool kOrdered = true;
  static Factor factor(double factor) { return static_cast<Factor>(factor); }
  RR_HD static Value scale(Value value, Factor factor) { return value * factor; }
  RR_HD static Value add(Value a, Value b) { return a + b; }
  RR_HD static Value multiply(Value a, Value b) { return a * b; }
};

// Wraps around. Scaled in float64 and truncated; what does not fit becomes the nearest that does,
// NaN zero.
template <typename T>
struct Integer {
  // Two small ones would be multiplied as int, whose overflow is undefined.
  using Wrapping = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr T kLeast = std::numeric_limits<T>::min(), kMost = std::numeric_limits<T>::max();
  using Memory = T;
  using Value = T;
  static constexpr bool kOrdered = true;

  // An average divides, see kernels/lanes.h.
  struct Factor {
    double times, over;
  };
  static Factor factor(double factor) {
    const double inverse = 1 / factor;
    if (!(inverse > -0x1p52 && inverse < 0x1p52)) return {factor, 0};
    const double nearest = static_cast<double>(static_cast<int64_t>(inverse + (inverse < 0 ? -0.5 : 0.5)));
    return {factor, 1 / nearest == factor ? nearest : 0};
  }

  RR_HD static T read(T memory) { return memory; }
  RR_HD static T write(T value) { return value; }
  RR_HD static T add(T a, T b) { return static_cast<T>(static_cast<Wrapping>(a) + static_cast<Wrapping>(b)); }
  RR_HD static T multiply(T a, T b) { return static_cast<T>(static_cast<Wrapping>(a) * static_cast<Wrapping>(b)); }
  RR_HD static T scale(T value, const Factor& factor) {
    return factor.times == 1 ? value : scaled(value, factor.times, factor.over);  // int64 does not survive float64
  }

 private:
  RR_HD_CALL static T scaled(T value, double times, double over) {
    const double exact = static_cast<double>(value);
    const double result = over != 0 ? exact / over : exact * times;
    return result >= static_cast<double>(kMost)    ? kMost
           : result <= static_cast<double>(kLeast) ? kLeast
           : result == result                      ? static_cast<T>(result)
                                                   : T(0);
  }
};

// Sum is "or"; the other operations need nothing of their own on 0 and 1.
struct Bool {
  using Memory = uint8_t;
  using Value = uint8_t;
  using Factor = uint8_t;
  static constexpr bool kOrdered = true;
  static Factor factor(double) { return 1; }
  RR_HD static uint8_t read(uint8_t memory) { return memory != 0; }
  RR_HD static uint8_t write(uint8_t value) { return value; }
  RR_HD static uint8_t scale(uint8_t value, uint8_t) { return value; }
  RR_HD static uint8_t add(uint8_t a, uint8_t b) { return a | b; }
  RR_HD static uint8_t multiply(uint8_t a, uint8_t b) { return a & b; }
};

// The textbook product, as kernels/lanes.h has it.
template <typename T>
struct Complex {
  struct alignas(2 * sizeof(T)) Memory {
    T real, imaginary;
  };
  using Value = Memory;
  using Factor = T;
  static constexpr bool kOrdered = false;
  static Factor factor(double factor) { return static_cast<T>(factor); }
  RR_HD static Value read(Memory memory) { return memory; }
  RR_HD static Memory write(Value value) { return value; }
  RR_HD static Value scale(Value v, T factor) { return {v.real * factor, v.imaginary * factor}; }
  RR_HD static Value add(Value a, Value b) { return {a.real + b.real, a.imaginary + b.imaginary}; }
  RR_HD static Value multiply(Value a, Value b) {
    return {a.real * b.real - a.imaginary * b.imaginary, a.real * b.imaginary + a.imaginary * b.real};
  }
};

// --- by dtype ------------------------------------------------------------------------------------

// Calls visit(type) for a floating-point dtype; false for others.
template <class Visit>
bool with_float(DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kFloat16: return visit(Float16()), true;
    case DType::kBFloat16: return visit(BFloat16()), true;
    case DType::kFloat32: return visit(Float<float>()), true;
    case DType::kFloat64: return visit(Float<double>()), true;
    default: return false;
  }
}

// The kernels' types of common/dtype.h, as the reduce needs them.
namespace reduced {
template <typename T>
using Integer = gpu::Integer<T>;
template <typename T>
using Real = gpu::Real<Float<T>>;
template <typename T>
using Complex = gpu::Complex<T>;
using Float16 = gpu::Real<gpu::Float16>;
using BFloat16 = gpu::Real<gpu::BFloat16>;
using Bool = gpu::Bool;
}  // namespace reduced

// Calls visit(type) with what the reduce needs for `dtype`.
template <class Visit>
void with_dtype(DType dtype, Visit visit) {
  switch (dtype) {
#define RR_ROW(name, python, bytes, family, type, nccl, one) case DType::k##name: return visit(reduced::type());
    RR_DTYPES(RR_ROW)
#undef RR_ROW
  }
}

}  // namespace gpu
}  // namespace ringreduce
