// Which reductions NCCL can do, and how it names them. Pure functions.
//
// Floating point and complex sums: NCCL's own, scaled by kernels before and after (Average of
// floats by NCCL's Avg, which keeps 16-bit sums from overflowing). Whole numbers: NCCL's if
// nothing scales the inputs. The rest (int16, bool, products of complex numbers, scaled whole
// numbers) NCCL lacks: those inputs are gathered, and reduced in rank order by a kernel of ours.
#pragma once

#include "common/dtype.h"
#include "gpu/nccl_api.h"

namespace ringreduce {

// `factor`: NCCL elements in one of ours.
inline bool nccl_dtype(DType dtype, NcclDType* type, int* factor) {
  *factor = 1;
  switch (dtype) {
    case DType::kUint8: *type = kNcclUint8; return true;
    case DType::kInt8: *type = kNcclInt8; return true;
    case DType::kInt32: *type = kNcclInt32; return true;
    case DType::kInt64: *type = kNcclInt64; return true;
    case DType::kFloat16: *type = kNcclFloat16; return true;
    case DType::kBFloat16: *type = kNcclBfloat16; return true;
    case DType::kFloat32: *type = kNcclFloat32; return true;
    case DType::kFloat64: *type = kNcclFloat64; return true;
    case DType::kComplex64: *type = kNcclFloat32; *factor = 2; return true;
    case DType::kComplex128: *type = kNcclFloat64; *factor = 2; return true;
    case DType::kInt16:
    case DType::kBool: return false;
  }
  return false;
}

inline bool is_floating(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBFloat16 || dtype == DType::kFloat32 || dtype == DType::kFloat64;
}

// A reduction as NCCL runs it: `pre` and `post` are applied by kernels of ours.
struct NcclReduction {
  NcclDType dtype = kNcclUint8;
  int factor = 1;
  NcclRedOp op = kNcclSum;
  Scale scale;
};

// False where NCCL cannot. `average`: the sum is to be divided by `size`; `scale` does not contain
// that yet.
inline bool nccl_reduction(DType dtype, Reduction reduction, bool average, Scale scale, int size, NcclReduction* how) {
  if (!nccl_dtype(dtype, &how->dtype, &how->factor)) return false;
  const bool complex = how->factor == 2;
  if (complex && reduction != Reduction::kSum) return false;
  how->scale = scale;
  switch (reduction) {
    case Reduction::kSum: how->op = kNcclSum; break;
    case Reduction::kProduct: how->op = kNcclProd; break;
    case Reduction::kMin: how->op = kNcclMin; break;
    case Reduction::kMax: how->op = kNcclMax; break;
  }
  if (average && is_floating(dtype)) how->op = kNcclAvg;
  else if (average) how->scale.post /= size;
  return is_floating(dtype) || complex || how->scale.pre == 1.0;
}

}  // namespace ringreduce
