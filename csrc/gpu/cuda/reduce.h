// The reduce of N sources in their order, with the CPU kernels' rules (kernels/kernels.h).
//
//     dst     head | group | group | ... | tail     a group: 16 bytes. A thread does one group of all
//                                                   sources; the first and the last may be partial
#pragma once

#include "gpu/cuda/numbers.h"
#include "gpu/cuda_api.h"

namespace ringreduce {
namespace gpu {

// "a b" in the four reductions. A NaN on either side is the result of Min and Max.
template <class Type, Reduction kReduction>
RR_HD typename Type::Value combine(typename Type::Value a, typename Type::Value b) {
  if constexpr (kReduction == Reduction::kSum) return Type::add(a, b);
  if constexpr (kReduction == Reduction::kProduct) return Type::multiply(a, b);
  if constexpr (kReduction == Reduction::kMin) return ((a < b) | (a != a)) ? a : b;
  if constexpr (kReduction == Reduction::kMax) return ((a > b) | (a != a)) ? a : b;
}

template <class Type>
struct ReduceParameters {
  char* dst;
  const char* src[DeviceReduceArgs::kReduceSources];
  uint64_t count;
  int src_count;
  Reduction reduction;
  bool scaled;
  bool aligned;   // all addresses are equally far from a 16-byte boundary
  uint32_t head;  // elements before the first whole group
  typename Type::Factor pre, post;
};

template <class Type>
struct ReduceBody {
  using Memory = typename Type::Memory;
  using Value = typename Type::Value;
  using Parameters = ReduceParameters<Type>;
  static constexpr uint32_t kGroup = kVectorBytes / sizeof(Memory);

  template <uint32_t kCount>
  RR_HD static void read(const Parameters& p, int source, uint64_t at, Value* value) {
    const auto group = load_group<Memory, kCount>(p.src[source] + at * sizeof(Memory));
    RR_UNROLL_ALL
    for (uint32_t k = 0; k < kCount; ++k) {
      value[k] = Type::read(group.element[k]);
      if (p.scaled) value[k] = Type::scale(value[k], p.pre);
    }
  }

  template <Reduction kReduction, uint32_t kCount>
  RR_HD static void reduce(const Parameters& p, uint64_t at) {
    Value sum[kCount], value[kCount];
    read<kCount>(p, 0, at, sum);
    RR_UNROLL(1)
    for (int source = 1; source < p.src_count; ++source) {
      read<kCount>(p, source, at, value);
      RR_UNROLL_ALL
      for (uint32_t k = 0; k < kCount; ++k) sum[k] = combine<Type, kReduction>(sum[k], value[k]);
    }
    Group<Memory, kCount> out;
    RR_UNROLL_ALL
    for (uint32_t k = 0; k < kCount; ++k)
      out.element[k] = Type::write(p.scaled ? Type::scale(sum[k], p.post) : sum[k]);
    store_group(p.dst + at * sizeof(Memory), out);
  }

  template <Reduction kReduction>
  RR_HD static void piece(const Parameters& p, uint64_t begin, uint64_t end) {
    if (p.aligned && end - begin == kGroup) return reduce<kReduction, kGroup>(p, begin);
    for (uint64_t at = begin; at < end; ++at) reduce<kReduction, 1>(p, at);
  }

  RR_HD static void run(const Parameters& p, uint32_t block, uint32_t thread) {
    const uint64_t index = uint64_t{block} * kThreads + thread;  // 0: the head, which may be empty
    const uint64_t begin = index ? p.head + (index - 1) * kGroup : 0;
    const uint64_t end = least(p.head + index * kGroup, p.count);
    if (begin >= end) return;
    switch (p.reduction) {
#define RR_ROW(name, number, ordered, nccl)                                                  \
  case Reduction::k##name:                                                                   \
    if constexpr (!ordered || Type::kOrdered) return piece<Reduction::k##name>(p, begin, end); \
    break;
      RR_REDUCTIONS(RR_ROW)
#undef RR_ROW
    }
  }
};

template <class Type, class Launch>
int reduce_type(const DeviceReduceArgs& args, Launch& launch) {
  using Body = ReduceBody<Type>;
  constexpr uint32_t kSize = sizeof(typename Type::Memory);
  ReduceParameters<Type> p;
  p.dst = static_cast<char*>(args.dst);
  p.count = args.count;
  p.src_count = args.src_count;
  p.reduction = args.reduction;
  p.scaled = !args.scale.is_identity();
  p.pre = Type::factor(args.scale.pre);
  p.post = Type::factor(args.scale.post);
  p.aligned = true;
  for (int i = 0; i < args.src_count; ++i) {
    p.src[i] = static_cast<const char*>(args.src[i]);
    if ((reinterpret_cast<uintptr_t>(p.src[i]) - reinterpret_cast<uintptr_t>(p.dst)) % kVectorBytes) p.aligned = false;
  }
  p.head = p.aligned ? elements_to(p.dst, kVectorBytes, kSize) : 0;
  const uint64_t groups = 1 + (args.count + Body::kGroup - 1) / Body::kGroup;
  const uint64_t blocks = (groups + kThreads - 1) / kThreads;
  return blocks > kMostBlocks ? kInvalidValue : launch.template run<Body>(p, blocks);
}

template <class Launch>
int reduce_sources(const DeviceReduceArgs& args, Launch launch) {
  const bool ordered = needs_order(args.reduction);
  const bool complex = info(args.dtype).family == Family::kComplex;
  if (args.src_count < 1 || args.src_count > DeviceReduceArgs::kReduceSources || (complex && ordered))
    return kInvalidValue;
  if (args.count == 0) return kCudaSuccess;
  int error = kCudaSuccess;
  with_dtype(args.dtype, [&](auto type) { error = reduce_type<decltype(type)>(args, launch); });
  return error;
}

}  // namespace gpu
}  // namespace ringreduce
