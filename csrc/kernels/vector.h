// Vector types of any length, before an instruction set is chosen: only types and constants,
// so that it does not matter for which target they were first seen.
#pragma once

#include <cstddef>
#include <cstdint>

// Kernels are assembled from small pieces that take vectors by value: always inlined, so that
// no calling convention for vectors comes in.
#define RR_INLINE [[gnu::always_inline]] inline

namespace ringreduce {

template <typename T, int kLanes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(sizeof(T) * kLanes)));
};
template <typename T, int kLanes>
using Vector = typename VectorOf<T, kLanes>::Type;

}  // namespace ringreduce
