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

// kNcclNone where there is none. Of a complex number it is that of its two parts.
inline NcclDType nccl_dtype(DType dtype) {
#define RR_ROW(name, python, bytes, family, type, nccl, one) nccl,
  static constexpr NcclDType kTable[] = {RR_DTYPES(RR_ROW)};
#undef RR_ROW
  return kTable[static_cast<int>(dtype)];
}

inline NcclRedOp nccl_op(Reduction reduction) {
#define RR_ROW(name, number, ordered, nccl) nccl,
  static constexpr NcclRedOp kTable[] = {RR_REDUCTIONS(RR_ROW)};
#undef RR_ROW
  return kTable[static_cast<int>(reduction)];
}

// A reduction as NCCL runs it: `pre` and `post` are applied by kernels of ours.
struct NcclReduction {
  NcclDType dtype = kNcclUint8;
  int factor = 1;  // NCCL elements in one of ours
  NcclRedOp op = kNcclSum;
  Scale scale;
};

// False where NCCL cannot. `average`: the sum is to be divided by `size`; `scale` does not contain
// that yet.
inline bool nccl_reduction(DType dtype, Reduction reduction, bool average, Scale scale, int size, NcclReduction* how) {
  const bool real = info(dtype).is_real(), complex = info(dtype).parts() == 2;
  how->dtype = nccl_dtype(dtype);
  how->factor = info(dtype).parts();
  how->op = nccl_op(reduction);
  how->scale = scale;
  if (how->dtype == kNcclNone || (complex && reduction != Reduction::kSum)) return false;
  if (average && real) how->op = kNcclAvg;
  else if (average) how->scale.post /= size;
  return real || complex || how->scale.pre == 1.0;
}

}  // namespace ringreduce
