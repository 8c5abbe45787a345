// The kernels themselves, over the vectors of lanes.h, compiled once for each instruction
// set (no #includes, for the reason given there).
//
//     src[0] ----[block]----------            a block of 4 vectors stays in registers while
//     src[1] ----[block]----------            the sources are combined into it, one after the
//     src[2] ----[block]----------            other; then it is written to all destinations.
//                   |                         Each source is read once, each destination
//     dst[0] ----[block]----------            written once.
//     dst[1] ----[block]----------
#pragma once

namespace ringreduce {
namespace {

constexpr size_t kLine = 64;  // bytes of a cache line; streaming stores want whole ones

// All kernels of one dtype. Only sweep() is compiled for each operation: what runs once a call, or
// at the ends, is shared, and looks the operation up (Any) at each vector.
template <class L>
struct Kernel {
  using Element = typename L::Element;
  using Packed = typename L::Packed;
  using Value = typename L::Value;
  using Factor = typename L::Factor;
  static constexpr size_t kLanes = L::kLanes;
  static constexpr size_t kVectors = 4, kBlock = kVectors * kLanes;  // of a block: vectors, elements
  static constexpr size_t kTileVectors = 4096 / sizeof(Value);       // of a tile, in the L1 cache
  static constexpr int kMostStreams = 12, kGroup = 4;

  // The caller's arguments, copied so that the compiler need not think that stores change them.
  struct Call : ReduceArgs {
    Reduction reduction;
    bool scaled;
    Factor pre, post;
    Call(const ReduceArgs& args, Reduction op)
        : ReduceArgs(args), reduction(op), scaled(!scale.is_identity()), pre(Factor(scale.pre)), post(Factor(scale.post)) {}
  };

  // How one vector is reached: whole, or (at the ends) only its first `count` lanes.
  struct Whole {
    bool past_caches;
    RR_INLINE Packed load(const Element* from) const {
      Packed packed;
      __builtin_memcpy(&packed, from, sizeof(packed));
      return packed;
    }
    RR_INLINE void store(Element* to, Packed packed) const {
      if (past_caches) return stream(to, packed);
      __builtin_memcpy(to, &packed, sizeof(packed));
    }
  };
  struct First {
    size_t count;
    RR_INLINE Packed load(const Element* from) const {
      Packed packed = {};
      __builtin_memcpy(&packed, from, count * sizeof(Element));
      return packed;
    }
    RR_INLINE void store(Element* to, Packed packed) const {
      __builtin_memcpy(to, &packed, count * sizeof(Element));
    }
  };

  template <size_t kCount, class Access>
  RR_INLINE static void load(const Call& call, int source, size_t at, Access access, bool scaled, Value* value) {
    const Element* from = static_cast<const Element*>(call.src[source]) + at;
    for (size_t i = 0; i < kCount; ++i) value[i] = L::unpack(access.load(from + i * kLanes));
    if (scaled) L::template scale<kCount>(value, call.pre);
  }

  // Combines kCount vectors, from element `at` on, of the sources [first, last): onto what is
  // in `value`, or (first is 0) from nothing.
  template <class Op, size_t kCount, class Access>
  RR_INLINE static void combine(const Call& call, bool scaled, int first, int last, size_t at, Access access,
                                Value* value) {
    if (first == 0) load<kCount>(call, first++, at, access, scaled, value);
    for (int source = first; source < last; ++source) {
      Value other[kCount];
      load<kCount>(call, source, at, access, scaled, other);
      Op::template apply<L, kCount>(call.reduction, value, other);
    }
  }

  template <size_t kCount, class Access>
  RR_INLINE static void write(const Call& call, bool scaled, size_t at, Access access, Value* value) {
    if (scaled) L::template scale<kCount>(value, call.post);
    Packed packed[kCount];
    for (size_t i = 0; i < kCount; ++i) packed[i] = L::pack(value[i]);
    for (int destination = 0; destination < call.dst_count; ++destination) {
      Element* to = static_cast<Element*>(call.dst[destination]) + at;
      for (size_t i = 0; i < kCount; ++i) access.store(to + i * kLanes, packed[i]);
    }
  }

  // Combines the sources [first, last) of whole blocks, from element `at` to `end`, and writes them to the
  // destinations or into `tile`, which has what the sources before `first` came to.
  template <class Op, bool kScaled>
  static void sweep(const Call& call, Whole whole, int first, int last, size_t at, size_t end, Value* tile) {
    for (; at < end; at += kBlock) {
      Value value[kVectors];
      if (first) __builtin_memcpy(value, tile, sizeof(value));
      combine<Op, kVectors>(call, kScaled, first, last, at, whole, value);
      if (!tile) {
        write<kVectors>(call, kScaled, at, whole, value);
      } else {
        __builtin_memcpy(tile, value, sizeof(value));
        tile += kVectors;
      }
    }
  }
  using Sweep = decltype(&sweep<Sum, false>);

  // Many sources: a CPU's prefetchers follow only so many streams at once, so a few sources at a
  // time are combined over some length, into a tile that stays in the L1 cache.
  [[gnu::noinline]] static void sweep_tile(const Call& call, Sweep sweep, Whole whole, size_t at) {
    Value tile[kTileVectors];
    for (int first = 0; first < call.src_count; first += kGroup) {
      const int last = first + kGroup < call.src_count ? first + kGroup : call.src_count;
      sweep(call, whole, first, last, at, at + kTileVectors * kLanes, tile);
    }
    write<kTileVectors>(call, call.scaled, at, whole, tile);
  }

  [[gnu::noinline]] static void edge(const Call& call, size_t at, size_t end) {
    for (; at < end; at += kLanes) {
      const First access{end - at < kLanes ? end - at : kLanes};
      Value value;
      combine<Any, 1>(call, call.scaled, 0, call.src_count, at, access, &value);
      write<1>(call, call.scaled, at, access, &value);
    }
  }

  [[gnu::noinline]] static void run_with(const ReduceArgs& args, Reduction reduction, Sweep sweep) {
    const Call call(args, reduction);
    const size_t count = call.count * L::kParts;
    const Alignment alignment = align(call, sizeof(Element) * L::kParts);
    const size_t head = alignment.head_bytes / sizeof(Element);
    size_t at = head < count ? head : count;
    edge(call, 0, at);
    const Whole whole{call.stream && alignment.common};
    if (call.src_count > kMostStreams)
      for (; count - at >= kTileVectors * kLanes; at += kTileVectors * kLanes) sweep_tile(call, sweep, whole, at);
    const size_t end = count - (count - at) % kBlock;
    if (at < end) sweep(call, whole, 0, call.src_count, at, end, nullptr);
    edge(call, end, count);
    if (whole.past_caches) stream_end();
  }

  template <class Op, bool kScaled>
  static void run(const ReduceArgs& args, Reduction reduction) {
    run_with(args, reduction, &sweep<Op, kScaled>);
  }
};

void copy_past_caches(void* dst, const void* src, size_t bytes) {
  using Line = Vector<uint8_t, kVectorBytes ? kVectorBytes : 1>;
  constexpr size_t kBlock = 4 * sizeof(Line);
  char* to = static_cast<char*>(dst);
  const char* from = static_cast<const char*>(src);
  const size_t head = -reinterpret_cast<uintptr_t>(to) % kLine;
  if (kVectorBytes == 0 || bytes < head + kBlock) return void(__builtin_memcpy(to, from, bytes));
  __builtin_memcpy(to, from, head);
  size_t at = head;
  for (; bytes - at >= kBlock; at += kBlock) {
    Line lines[4];
    __builtin_memcpy(lines, from + at, kBlock);
    for (int i = 0; i < 4; ++i) stream(to + at + i * sizeof(Line), lines[i]);
  }
  __builtin_memcpy(to + at, from + at, bytes - at);
  stream_end();
}

// Scaled, only sums have a kernel of their own: averages are made with it.
template <class L>
constexpr void fill(Table* table, DType dtype) {
  auto& plain = table->reduce[false][static_cast<int>(dtype)];
  plain[static_cast<int>(Reduction::kSum)] = Kernel<L>::template run<Sum, false>;
  plain[static_cast<int>(Reduction::kProduct)] = Kernel<L>::template run<Product, false>;
  if constexpr (L::kParts == 1) {
    plain[static_cast<int>(Reduction::kMin)] = Kernel<L>::template run<Min, false>;
    plain[static_cast<int>(Reduction::kMax)] = Kernel<L>::template run<Max, false>;
  }
  auto& scaled = table->reduce[true][static_cast<int>(dtype)];
  for (int op = 0; op < kReductionCount; ++op)
    if (plain[op]) scaled[op] = Kernel<L>::template run<Any, true>;
  scaled[static_cast<int>(Reduction::kSum)] = Kernel<L>::template run<Sum, true>;
}

constexpr Table make_table(const char* name) {
  Table table;
  table.name = name;
  fill<Integer<uint8_t, uint8_t, 0, UINT8_MAX>>(&table, DType::kUint8);
  fill<Integer<int8_t, uint8_t, INT8_MIN, INT8_MAX>>(&table, DType::kInt8);
  fill<Integer<int16_t, uint16_t, INT16_MIN, INT16_MAX>>(&table, DType::kInt16);
  fill<Integer<int32_t, uint32_t, INT32_MIN, INT32_MAX>>(&table, DType::kInt32);
  fill<Integer<int64_t, uint64_t, INT64_MIN, INT64_MAX>>(&table, DType::kInt64);
  fill<Float16>(&table, DType::kFloat16);
  fill<BFloat16>(&table, DType::kBFloat16);
  fill<Number<float>>(&table, DType::kFloat32);
  fill<Number<double>>(&table, DType::kFloat64);
  fill<Complex<float>>(&table, DType::kComplex64);
  fill<Complex<double>>(&table, DType::kComplex128);
  fill<Bool>(&table, DType::kBool);
  table.stream_copy = copy_past_caches;
  return table;
}

}  // namespace
}  // namespace ringreduce
