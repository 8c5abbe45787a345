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

// The caller's arguments, copied so that the compiler need not think that stores change them.
template <class L>
struct Call : ReduceArgs {
  Reduction reduction;
  bool scaled;
  typename L::Factor pre, post;
  Call(const ReduceArgs& args, Reduction which)
      : ReduceArgs(args), reduction(which), scaled(!scale.is_identity()), pre(scale.pre), post(scale.post) {}
};

// An `Op`: the call says which one is meant, and whether its factors are 1. What takes little of the time when it runs
// is shared by all operations in this way, and what is seldom asked for: half of what there would be to compile.
struct Any {};

template <class L, class Op, bool kScaled>
struct Kernel {
  static constexpr bool kIsAny = std::is_same_v<Op, Any>;
  using Shared = Kernel<L, Any, true>;
  using Element = typename L::Element;
  using Packed = typename L::Packed;
  using Value = typename L::Value;
  using Factor = typename L::Factor;
  static constexpr size_t kLanes = L::kLanes;
  static constexpr size_t kVectors = 4;                         // of a block
  static constexpr size_t kTileVectors = 4096 / sizeof(Value);  // of a tile, in the L1 cache
  static constexpr int kMostStreams = 12, kGroup = 4;

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

  RR_INLINE static Value scaled(const Call<L>& call, Value value, const Factor& factor) {
    return kScaled && (!kIsAny || call.scaled) ? L::scale(value, factor) : value;
  }

  template <class Access>
  RR_INLINE static Value load(const Call<L>& call, const Element* from, Access access) {
    return scaled(call, L::unpack(access.load(from)), call.pre);
  }

  template <size_t kCount>
  RR_INLINE static void apply_any(Reduction reduction, Value* value, const Value* next) {
#define RR_ROW(name, number, ordered, nccl)                    \
  if constexpr (!ordered || L::kParts == 1)                    \
    if (reduction == Reduction::k##name)                       \
      for (size_t i = 0; i < kCount; ++i) value[i] = name::apply<L>(value[i], next[i]);
    RR_REDUCTIONS(RR_ROW)
#undef RR_ROW
  }

  // Combines kCount vectors, from element `at` on, of the sources [first, last): onto what is
  // in `value`, or (first is 0) from nothing.
  template <size_t kCount, class Access>
  RR_INLINE static void combine(const Call<L>& call, int first, int last, size_t at, Access access, Value* value) {
    if (first == 0) {
      const Element* from = static_cast<const Element*>(call.src[first++]) + at;
      for (size_t i = 0; i < kCount; ++i) value[i] = load(call, from + i * kLanes, access);
    }
    for (int source = first; source < last; ++source) {
      const Element* from = static_cast<const Element*>(call.src[source]) + at;
      if constexpr (kIsAny) {
        Value next[kCount];
        for (size_t i = 0; i < kCount; ++i) next[i] = load(call, from + i * kLanes, access);
        apply_any<kCount>(call.reduction, value, next);
      } else {
        for (size_t i = 0; i < kCount; ++i)
          value[i] = Op::template apply<L>(value[i], load(call, from + i * kLanes, access));
      }
    }
  }

  template <size_t kCount, class Access>
  RR_INLINE static void write(const Call<L>& call, size_t at, Access access, const Value* value) {
    Packed packed[kCount];
    for (size_t i = 0; i < kCount; ++i) packed[i] = L::pack(scaled(call, value[i], call.post));
    for (int destination = 0; destination < call.dst_count; ++destination) {
      Element* to = static_cast<Element*>(call.dst[destination]) + at;
      for (size_t i = 0; i < kCount; ++i) access.store(to + i * kLanes, packed[i]);
    }
  }

  template <size_t kCount, class Access>
  RR_INLINE static void block(const Call<L>& call, size_t at, Access access) {
    Value value[kCount];
    combine<kCount>(call, 0, call.src_count, at, access, value);
    write<kCount>(call, at, access, value);
  }

  // Many sources: a CPU's prefetchers follow only so many streams at once, so a few sources at a
  // time are combined over some length, into a tile that stays in the L1 cache.
  [[gnu::noinline]] static void tile(const Call<L>& call, size_t at, Whole whole) {
    Value tile[kTileVectors];
    for (int first = 0; first < call.src_count; first += kGroup) {
      const int last = first + kGroup < call.src_count ? first + kGroup : call.src_count;
      for (size_t done = 0; done < kTileVectors; done += kVectors) {
        Value value[kVectors];
        if (first) __builtin_memcpy(value, tile + done, sizeof(value));
        combine<kVectors>(call, first, last, at + done * kLanes, whole, value);
        __builtin_memcpy(tile + done, value, sizeof(value));
      }
    }
    Shared::write_tile(call, at, whole.past_caches, tile);
  }

  [[gnu::noinline]] static void write_tile(const Call<L>& call, size_t at, bool past_caches, const Value* tile) {
    write<kTileVectors>(call, at, Whole{past_caches}, tile);
  }

  [[gnu::noinline]] static void edge(const Call<L>& call, size_t begin, size_t end) {
    for (size_t at = begin; at < end; at += kLanes) block<1>(call, at, First{end - at < kLanes ? end - at : kLanes});
  }

  static void run(const ReduceArgs& args, Reduction reduction) {
    const Call<L> call(args, reduction);
    const size_t count = call.count * L::kParts;
    const Alignment alignment = align(call, sizeof(Element) * L::kParts);
    const size_t head = alignment.head_bytes / sizeof(Element);
    size_t at = head < count ? head : count;
    Shared::edge(call, 0, at);
    const Whole whole{call.stream && alignment.common};
    if (call.src_count > kMostStreams)
      for (; count - at >= kTileVectors * kLanes; at += kTileVectors * kLanes) tile(call, at, whole);
    for (; count - at >= kVectors * kLanes; at += kVectors * kLanes) block<kVectors>(call, at, whole);
    Shared::edge(call, at, count);
    if (whole.past_caches) stream_end();
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

// The sum of complex numbers is that of twice as many real ones.
template <class L, bool kScaled>
void sum_of_parts(const ReduceArgs& args, Reduction reduction) {
  ReduceArgs parts = args;
  parts.count *= L::kParts;
  Kernel<Real<typename L::Element>, Sum, kScaled>::run(parts, reduction);
}

// Seldom asked for are the scaled minimum, maximum and product.
template <class L, class Op, bool kScaled>
constexpr Table::Reduce kernel() {
  if constexpr (L::kParts > 1 && std::is_same_v<Op, Sum>) return sum_of_parts<L, kScaled>;
  else if constexpr (std::is_same_v<L, Bool>) return Kernel<L, Op, false>::run;
  else if constexpr (kScaled && !std::is_same_v<Op, Sum>) return Kernel<L, Any, true>::run;
  else return Kernel<L, Op, kScaled>::run;
}

template <class L>
constexpr void fill(Table* table, DType dtype) {
  for (int scaled = 0; scaled < 2; ++scaled) {
    auto& row = table->reduce[scaled][static_cast<int>(dtype)];
#define RR_ROW(name, number, ordered, nccl) \
  if constexpr (!ordered || L::kParts == 1) \
    row[static_cast<int>(Reduction::k##name)] = scaled ? kernel<L, name, true>() : kernel<L, name, false>();
    RR_REDUCTIONS(RR_ROW)
#undef RR_ROW
  }
}

constexpr Table make_table(const char* name) {
  Table table;
  table.name = name;
#define RR_ROW(name, python, bytes, family, type, nccl, one) fill<type>(&table, DType::k##name);
  RR_DTYPES(RR_ROW)
#undef RR_ROW
  table.stream_copy = copy_past_caches;
  return table;
}

}  // namespace
}  // namespace ringreduce
