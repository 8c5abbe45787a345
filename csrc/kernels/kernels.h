// How numbers are combined on the CPU. One table of functions for each instruction set
// (scalar, avx2, avx512), chosen once at run time; all of them give the same bits (of NaN
// only that it is NaN: a sum of two NaN is either of them).
#pragma once

#include <cstddef>
#include <string>

#include "common/dtype.h"

namespace ringreduce {

// dst[0..dst_count) all receive  post * (pre*src[0] op pre*src[1] op ...), combined in the
// order of src. A dst may be the very same pointer as a src; any other overlap is not allowed.
// Pointers are aligned to the element size at least. Whole numbers wrap around; scaled ones that
// do not fit become the nearest that does. Min and Max are NaN where a source is.
struct ReduceArgs {
  void* const* dst;
  int dst_count;
  const void* const* src;
  int src_count;
  size_t count;  // elements
  Scale scale;
  bool stream = false;  // write past the caches (non-temporal); the kernel ends with an sfence
};

// False for pairs without a meaning: Min and Max of complex numbers. bool: Sum and Max are
// "or", Product and Min are "and", scale is ignored.
bool reduce_supported(DType dtype, Reduction reduction);

void reduce(DType dtype, Reduction reduction, const ReduceArgs& args);

// memcpy that can write past the caches (ends with an sfence then).
void copy(void* dst, const void* src, size_t bytes, bool stream = false);

// The table in use: "scalar", "avx2" or "avx512". Chosen at first use from the CPU and from
// settings().kernels (RINGREDUCE_KERNELS), or forced here by tests; false where this CPU
// lacks it.
const char* kernels_name();
bool force_kernels(const std::string& name);

}  // namespace ringreduce
