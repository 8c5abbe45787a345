// Sparse gradients: rows of equal index are added. Each row of the result knows which rows of the
// values it is the sum of, and in which order (MergeRowsArgs).
//
// A block is a rectangle of the result: `rows` rows of kThreads / rows threads, each with one group
// of columns. Narrow rows make it high, so that no thread is idle and neighbours read neighbours.
#pragma once

#include "gpu/cuda/numbers.h"
#include "gpu/cuda_api.h"

namespace ringreduce {
namespace gpu {

template <typename Value>
struct MergeParameters {
  char* out;
  const char* values;
  const int64_t* order;
  const int64_t* first;
  uint64_t out_rows, width;
  uint32_t row_shift;      // log2 of the threads of one row in a block
  uint32_t column_blocks;  // blocks beside each other
  Value scale;
};

template <class Type, uint32_t kGroup>
struct MergeBody {
  using Memory = typename Type::Memory;
  using Value = typename Type::Value;
  using Parameters = MergeParameters<Value>;

  RR_HD static void run(const Parameters& p, uint32_t block, uint32_t thread) {
    const uint32_t row_block = block / p.column_blocks, column_block = block % p.column_blocks;
    const uint64_t row = (uint64_t{row_block} * kThreads + thread) >> p.row_shift;
    const uint32_t in_row = thread & ((1u << p.row_shift) - 1);
    const uint64_t column = ((uint64_t{column_block} << p.row_shift) + in_row) * kGroup;
    if (row >= p.out_rows || column >= p.width) return;
    Value sum[kGroup] = {};
    const int64_t begin = p.first[row], end = p.first[row + 1];
    RR_UNROLL(4)
    for (int64_t i = begin; i < end; ++i) {
      const auto group = load_group<Memory, kGroup>(p.values + (p.order[i] * p.width + column) * sizeof(Memory));
      RR_UNROLL_ALL
      for (uint32_t k = 0; k < kGroup; ++k) {
        const Value value = Type::read(group.element[k]);
        sum[k] = i == begin ? value : sum[k] + value;
      }
    }
    Group<Memory, kGroup> out;
    RR_UNROLL_ALL
    for (uint32_t k = 0; k < kGroup; ++k) out.element[k] = Type::write(sum[k] * p.scale);
    store_group(p.out + (row * p.width + column) * sizeof(Memory), out);
  }
};

template <class Type, uint32_t kGroup, class Launch>
int merge_groups(const MergeRowsArgs& args, Launch& launch) {
  using Body = MergeBody<Type, kGroup>;
  typename Body::Parameters p{};
  p.out = static_cast<char*>(args.out);
  p.values = static_cast<const char*>(args.values);
  p.order = args.order;
  p.first = args.first;
  p.out_rows = args.out_rows;
  p.width = args.width;
  p.scale = static_cast<typename Type::Value>(args.scale);
  const uint64_t groups = (args.width + kGroup - 1) / kGroup;
  while ((1u << p.row_shift) < kThreads && (1u << p.row_shift) < groups) ++p.row_shift;
  const uint64_t threads_of_row = 1u << p.row_shift, rows = kThreads / threads_of_row;
  const uint64_t across = (groups + threads_of_row - 1) / threads_of_row, down = (args.out_rows + rows - 1) / rows;
  if (across > kMostBlocks || down > kMostBlocks / across) return kInvalidValue;
  p.column_blocks = static_cast<uint32_t>(across);
  return launch.template run<Body>(p, across * down);
}

template <class Launch>
int merge_all_rows(const MergeRowsArgs& args, Launch launch) {
  int error = kInvalidValue;
  with_float(args.dtype, [&](auto type) {
    using Type = decltype(type);
    constexpr uint32_t kGroup = kVectorBytes / sizeof(typename Type::Memory);
    const auto addresses = reinterpret_cast<uintptr_t>(args.out) | reinterpret_cast<uintptr_t>(args.values);
    if (args.out_rows == 0 || args.width == 0) {
      error = kCudaSuccess;
    } else if (addresses % kVectorBytes == 0 && args.width % kGroup == 0) {
      error = merge_groups<Type, kGroup>(args, launch);
    } else {
      error = merge_groups<Type, 1>(args, launch);
    }
  });
  return error;
}

}  // namespace gpu
}  // namespace ringreduce
