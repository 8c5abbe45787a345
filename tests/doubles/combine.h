// The reductions of the NCCL double: in rank order; floats by the CPU's kernels, whole numbers by a
// plain loop (those kernels lack unsigned ones, and Avg of whole numbers divides their sum).
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "gpu/nccl_api.h"
#include "kernels/kernels.h"

namespace ringreduce::doubles {

template <typename T>
void combine_whole(T* out, const std::vector<const void*>& in, size_t count, int op) {
  using Wrapping = std::make_unsigned_t<T>;
  for (size_t i = 0; i < count; ++i) {
    T all = static_cast<const T*>(in[0])[i];
    for (size_t rank = 1; rank < in.size(); ++rank) {
      const T next = static_cast<const T*>(in[rank])[i];
      switch (op) {
        case kNcclProd: all = static_cast<T>(static_cast<Wrapping>(all) * static_cast<Wrapping>(next)); break;
        case kNcclMax: all = std::max(all, next); break;
        case kNcclMin: all = std::min(all, next); break;
        default: all = static_cast<T>(static_cast<Wrapping>(all) + static_cast<Wrapping>(next));
      }
    }
    out[i] = op == kNcclAvg ? static_cast<T>(all / static_cast<T>(in.size())) : all;
  }
}

inline void combine_floats(DType dtype, void* out, const std::vector<const void*>& in, size_t count, int op) {
  static constexpr Reduction kReductions[] = {Reduction::kSum, Reduction::kProduct, Reduction::kMax, Reduction::kMin,
                                              Reduction::kSum};
  ReduceArgs args{&out, 1, in.data(), static_cast<int>(in.size()), count, {}};
  if (op == kNcclAvg) args.scale.post = 1.0 / static_cast<double>(in.size());
  reduce(dtype, kReductions[op], args);
}

// `in`: a source for each rank; `out` may be one of them.
inline void combine(int dtype, int op, void* out, const std::vector<const void*>& in, size_t count) {
  switch (dtype) {
    case kNcclInt8: return combine_whole(static_cast<int8_t*>(out), in, count, op);
    case kNcclUint8: return combine_whole(static_cast<uint8_t*>(out), in, count, op);
    case kNcclInt32: return combine_whole(static_cast<int32_t*>(out), in, count, op);
    case kNcclUint32: return combine_whole(static_cast<uint32_t*>(out), in, count, op);
    case kNcclInt64: return combine_whole(static_cast<int64_t*>(out), in, count, op);
    case kNcclUint64: return combine_whole(static_cast<uint64_t*>(out), in, count, op);
    case kNcclFloat16: return combine_floats(DType::kFloat16, out, in, count, op);
    case kNcclFloat32: return combine_floats(DType::kFloat32, out, in, count, op);
    case kNcclFloat64: return combine_floats(DType::kFloat64, out, in, count, op);
    case kNcclBfloat16: return combine_floats(DType::kBFloat16, out, in, count, op);
  }
}

}  // namespace ringreduce::doubles
