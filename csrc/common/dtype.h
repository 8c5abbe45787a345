// Element types and reduction operations. The numbers cross the Python boundary
// (ringreduce/_ops/dtypes.py lists the same), so append, never reorder.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringreduce {

enum class DType : uint8_t {
  kUint8, kInt8, kInt16, kInt32, kInt64,
  kFloat16, kBFloat16, kFloat32, kFloat64,
  kComplex64, kComplex128, kBool,
};
constexpr int kDTypeCount = 12;

struct DTypeInfo {
  const char* name;
  size_t size;  // bytes of one element
};

inline const DTypeInfo& info(DType dtype) {
  static constexpr DTypeInfo kTable[kDTypeCount] = {
      {"uint8", 1},    {"int8", 1},     {"int16", 2},   {"int32", 4},
      {"int64", 8},    {"float16", 2},  {"bfloat16", 2}, {"float32", 4},
      {"float64", 8},  {"complex64", 8}, {"complex128", 16}, {"bool", 1},
  };
  return kTable[static_cast<int>(dtype)];
}

// What a kernel does with two elements. Average is kSum with a postscale of 1/size.
enum class Reduction : uint8_t { kSum, kMin, kMax, kProduct };
constexpr int kReductionCount = 4;

// Factors applied to every input (pre) and to the result (post). Floating point: in the
// accumulation type (float32 for 16-bit floats), rounded once. Integers: in float64,
// truncated toward zero.
struct Scale {
  double pre = 1.0;
  double post = 1.0;
  bool is_identity() const { return pre == 1.0 && post == 1.0; }
};

}  // namespace ringreduce
