// One instruction set's functions, and which tables there are. body.h says what fills them.
#pragma once

#include <limits>
#include <type_traits>

#include "kernels/kernels.h"

namespace ringreduce {

struct Table {
  using Reduce = void (*)(const ReduceArgs& args, Reduction reduction);
  using Copy = void (*)(void* dst, const void* src, size_t bytes);

  const char* name = nullptr;
  Reduce reduce[2][kDTypeCount][kReductionCount] = {};  // [scaled]; null where not supported
  Copy stream_copy = nullptr;
};

extern const Table kScalarTable;
#if defined(__x86_64__)
extern const Table kAvx2Table, kAvx512Table;
#endif

// How far dst[0] is from the next cache line, and whether all destinations are equally far.
// Not `common` either where no whole number of elements leads to a line.
struct Alignment {
  size_t head_bytes;
  bool common;
};
Alignment align(const ReduceArgs& args, size_t element_bytes);

}  // namespace ringreduce
