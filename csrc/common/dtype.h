// Element types and reduction operations, each a row of a table. All else about them is made from the rows: the
// kernels of CPU and GPU, NCCL's names, what Python is told (_core.DTYPES, _core.REDUCE_OPS).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringreduce {

// Python knows a dtype by its place in the table, so append, never reorder.
//    in C++      in Python   bytes  family     kernels' type     NCCL's type    1.0 in memory
#define RR_DTYPES(ROW)                                                                               \
  ROW(Uint8,      uint8,      1,     kUnsigned, Integer<uint8_t>, kNcclUint8,    0)                  \
  ROW(Int8,       int8,       1,     kSigned,   Integer<int8_t>,  kNcclInt8,     0)                  \
  ROW(Int16,      int16,      2,     kSigned,   Integer<int16_t>, kNcclNone,     0)                  \
  ROW(Int32,      int32,      4,     kSigned,   Integer<int32_t>, kNcclInt32,    0)                  \
  ROW(Int64,      int64,      8,     kSigned,   Integer<int64_t>, kNcclInt64,    0)                  \
  ROW(Float16,    float16,    2,     kFloat,    Float16,          kNcclFloat16,  0x3c00)             \
  ROW(BFloat16,   bfloat16,   2,     kBFloat,   BFloat16,         kNcclBfloat16, 0x3f80)             \
  ROW(Float32,    float32,    4,     kFloat,    Real<float>,      kNcclFloat32,  0x3f800000)         \
  ROW(Float64,    float64,    8,     kFloat,    Real<double>,     kNcclFloat64,  0x3ff0000000000000) \
  ROW(Complex64,  complex64,  8,     kComplex,  Complex<float>,   kNcclFloat32,  0x3f800000)         \
  ROW(Complex128, complex128, 16,    kComplex,  Complex<double>,  kNcclFloat64,  0x3ff0000000000000) \
  ROW(Bool,       bool,       1,     kBool,     Bool,             kNcclNone,     0)

#define RR_ROW(name, ...) k##name,
enum class DType : uint8_t { RR_DTYPES(RR_ROW) };
#undef RR_ROW
#define RR_ROW(...) +1
constexpr int kDTypeCount = RR_DTYPES(RR_ROW);
#undef RR_ROW

enum class Family : uint8_t { kUnsigned, kSigned, kFloat, kBFloat, kComplex, kBool };

struct DTypeInfo {
  const char* name;
  size_t size;  // bytes of one element
  Family family;
  uint64_t one;  // the bits of 1.0, of a complex number's part; 0: not floating point
  int parts() const { return family == Family::kComplex ? 2 : 1; }
  bool is_real() const { return family == Family::kFloat || family == Family::kBFloat; }
};

inline const DTypeInfo& info(DType dtype) {
#define RR_ROW(name, python, bytes, family, type, nccl, one) {#python, bytes, Family::family, one},
  static constexpr DTypeInfo kTable[] = {RR_DTYPES(RR_ROW)};
#undef RR_ROW
  return kTable[static_cast<int>(dtype)];
}

// What a kernel does with two elements (the kernels' function has the same name), Python's number for it
// (Horovod's; 2, Adasum, is not offered), whether it needs an order, which complex numbers lack, and NCCL's name.
#define RR_REDUCTIONS(ROW)          \
  ROW(Sum,     1, false, kNcclSum)  \
  ROW(Min,     3, true,  kNcclMin)  \
  ROW(Max,     4, true,  kNcclMax)  \
  ROW(Product, 5, false, kNcclProd)

#define RR_ROW(name, ...) k##name,
enum class Reduction : uint8_t { RR_REDUCTIONS(RR_ROW) };
#undef RR_ROW
#define RR_ROW(...) +1
constexpr int kReductionCount = RR_REDUCTIONS(RR_ROW);
#undef RR_ROW

// The reduction operations of the Python API: those, and Average, a sum with a postscale of 1/size.
#define RR_ROW(name, number, ...) kOp##name = number,
enum ReduceOp : int { kAverage = 0, RR_REDUCTIONS(RR_ROW) };
#undef RR_ROW

inline bool needs_order(Reduction reduction) {
#define RR_ROW(name, number, ordered, nccl) ordered,
  static constexpr bool kTable[] = {RR_REDUCTIONS(RR_ROW)};
#undef RR_ROW
  return kTable[static_cast<int>(reduction)];
}

struct ReduceOpInfo {
  const char* name;
  int op;
  Reduction reduction;
  bool averages;
};
#define RR_ROW(name, number, ...) {#name, number, Reduction::k##name, false},
constexpr ReduceOpInfo kReduceOps[] = {{"Average", kAverage, Reduction::kSum, true}, RR_REDUCTIONS(RR_ROW)};
#undef RR_ROW

// Null for a number that is none.
inline const ReduceOpInfo* find_op(int op) {
  for (const ReduceOpInfo& row : kReduceOps)
    if (row.op == op) return &row;
  return nullptr;
}

// Factors applied to every input (pre) and to the result (post). Floating point: in the
// accumulation type (float32 for 16-bit floats), rounded once. Integers: in float64,
// truncated toward zero.
struct Scale {
  double pre = 1.0;
  double post = 1.0;
  bool is_identity() const { return pre == 1.0 && post == 1.0; }
};

}  // namespace ringreduce
