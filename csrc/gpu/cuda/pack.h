// Pack and unpack: many tensors to and from one bucket, in one launch.
//
//     bucket     |  0  |  1  |  2  |  3  |  4  |  5  |     chunks of kChunk elements
//     tensors      aaaaaaaaaaa  bb c dddddddddddddd
//     tasks        a0 a1 a2    b2  c2 d3 d4 d5             a warp does one task: a tensor in a chunk
//
// Tensor i's tasks begin with number offset(i) / kChunk + i. That grows with i, has room for all
// the chunks which the tensor touches, and needs no memory; so a tensor takes 16 bytes of the
// kernel's parameters (2,000 tensors in 32,764 bytes), a warp finds its tensor by binary search,
// and its chunk is the number of the task minus that of the tensor. The price is a task without
// work for about one tensor in two.
//
// What a warp reads of the parameters comes from a cache that is cold at first, one miss after the
// other; hints shorten the search, and it reads of each tensor only the offset.
#pragma once

#include <algorithm>
#include <vector>

#include "gpu/cuda/numbers.h"
#include "gpu/cuda_api.h"

namespace ringreduce {
namespace gpu {

// What CUDA passes to a kernel at most: up to 12.0, and from 12.1 on.
constexpr uint32_t kSmallParameters = 4096, kLargeParameters = 32764;

template <typename Compute, uint32_t kBytes>
struct PackParameters {
  static constexpr uint32_t kHints = 64;
  static constexpr uint32_t kCapacity = (kBytes - 40 - 2 * (kHints + 4)) / 16;
  char* bucket;
  Compute scale;
  uint32_t entries;
  uint32_t hint_shift;
  bool to_bucket;
  uint16_t hint[kHints + 1];  // which entry task k << hint_shift is of
  // By entry, ordered by offset, without overlap. In elements, the offset from `bucket`.
  uint32_t offset[kCapacity], count[kCapacity];
  char* tensor[kCapacity];
};

// Bits as they are: the type of both sides where nothing is converted or scaled.
template <typename T>
struct Opaque {
  using Memory = T;
};
struct alignas(16) Bits128 {
  uint64_t half[2];
};

template <class From, class To>
struct Conversion {
  using Source = typename From::Memory;
  using Target = typename To::Memory;
  using Compute = std::conditional_t<sizeof(Source) == 8 || sizeof(Target) == 8, double, float>;

  template <uint32_t kCount>
  RR_HD static Group<Target, kCount> convert(const Group<Source, kCount>& in, Compute scale) {
    Group<Target, kCount> out;
    RR_UNROLL_ALL
    for (uint32_t k = 0; k < kCount; ++k)
      out.element[k] = To::write(static_cast<Compute>(From::read(in.element[k])) * scale);
    return out;
  }
};
template <typename T>
struct Conversion<Opaque<T>, Opaque<T>> {
  using Compute = float;
  template <uint32_t kCount>
  RR_HD static const Group<T, kCount>& convert(const Group<T, kCount>& in, float) {
    return in;
  }
};

// What one warp does: `count` elements at `from` to `to`. The wider side moves in 16-byte vectors
// where both sides can be aligned at the same element, else all goes element by element.
template <class From, class To>
struct Move {
  using Source = typename From::Memory;
  using Target = typename To::Memory;
  using Convert = Conversion<From, To>;
  using Compute = typename Convert::Compute;
  static constexpr uint32_t kGroup = kVectorBytes / (sizeof(Source) > sizeof(Target) ? sizeof(Source) : sizeof(Target));
  static constexpr uint32_t kBatch = 4;  // loads in flight in a thread
  static constexpr uint32_t kChunk = kWarp * kBatch * kGroup;

  // `count` groups, which lie one after the other but for a gap of `gap` elements before number
  // `before`. Loads of a batch come before its stores, as either may be the other's memory for all
  // the compiler knows.
  template <uint32_t kCount>
  RR_HD static void groups(const char* from, char* to, uint32_t count, uint32_t before, uint32_t gap, uint32_t lane,
                           Compute scale) {
    const auto place = [=](uint32_t group) { return group * kCount + (group < before ? 0 : gap); };
    for (uint32_t first = lane; first < count; first += kWarp * kBatch) {
      Group<Source, kCount> in[kBatch];
      RR_UNROLL_ALL
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t group = first + i * kWarp;
        if (group < count) in[i] = load_group<Source, kCount>(from + place(group) * sizeof(Source));
      }
      RR_UNROLL_ALL
      for (uint32_t i = 0; i < kBatch; ++i) {
        const uint32_t group = first + i * kWarp;
        if (group < count) store_group(to + place(group) * sizeof(Target), Convert::convert(in[i], scale));
      }
    }
  }

  RR_HD static void run(const char* from, char* to, uint32_t count, uint32_t lane, Compute scale) {
    uint32_t head = elements_to(from, kGroup * sizeof(Source), sizeof(Source));
    if (head != elements_to(to, kGroup * sizeof(Target), sizeof(Target)) || head > count) head = count;
    const uint32_t whole = (count - head) / kGroup, inside = whole * kGroup;
    groups<kGroup>(from + head * sizeof(Source), to + head * sizeof(Target), whole, whole, 0, lane, scale);
    if (kGroup > 1) groups<1>(from, to, count - inside, head, inside, lane, scale);  // head and tail
  }
};

// The kernel's body.
template <class From, class To, uint32_t kBytes>
struct PackBody {
  using Mover = Move<From, To>;
  using Parameters = PackParameters<typename Mover::Compute, kBytes>;
  static constexpr uint32_t kChunk = Mover::kChunk;

  RR_HD static uint32_t first_task(const Parameters& p, uint32_t entry) { return p.offset[entry] / kChunk + entry; }

  // The last entry in [low, high) whose tasks begin at `task` or before; `low` is one that does.
  RR_HD static uint32_t find(const Parameters& p, uint32_t task, uint32_t low, uint32_t high) {
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      if (first_task(p, middle) <= task) low = middle;
      else high = middle;
    }
    return low;
  }

  RR_HD static void run(const Parameters& p, uint32_t block, uint32_t thread) {
    const uint32_t task = block * (kThreads / kWarp) + thread / kWarp, hint = task >> p.hint_shift;
    if (hint >= Parameters::kHints) return;  // the last block may have more warps than there are tasks
    const uint32_t entry = find(p, task, p.hint[hint], p.hint[hint + 1] + 1u);
    const uint32_t offset = p.offset[entry], chunk = (task - entry) * kChunk;
    const uint32_t begin = chunk > offset ? chunk : offset, end = least(chunk + kChunk, offset + p.count[entry]);
    if (begin >= end) return;
    const uint64_t tensor_size = p.to_bucket ? sizeof(typename From::Memory) : sizeof(typename To::Memory);
    const uint64_t bucket_size = p.to_bucket ? sizeof(typename To::Memory) : sizeof(typename From::Memory);
    char* tensor = p.tensor[entry] + (begin - offset) * tensor_size;
    char* bucket = p.bucket + begin * bucket_size;
    Mover::run(p.to_bucket ? tensor : bucket, p.to_bucket ? bucket : tensor, end - begin, thread % kWarp, p.scale);
  }

  // Fills in the hints; returns the number of tasks.
  static uint32_t prepare(Parameters* p) {
    const uint32_t last = p->entries - 1;
    const uint32_t tasks = (p->offset[last] + p->count[last]) / kChunk + p->entries;
    p->hint_shift = 0;
    while ((tasks - 1) >> p->hint_shift >= Parameters::kHints) ++p->hint_shift;
    uint32_t entry = 0;
    for (uint32_t k = 0; k <= Parameters::kHints; ++k) {
      const uint64_t task = uint64_t{k} << p->hint_shift;
      while (entry < last && first_task(*p, entry + 1) <= task) ++entry;
      p->hint[k] = static_cast<uint16_t>(entry);
    }
    return tasks;
  }
};

// --- which launches a call takes; `launch` is the device's or the host's ------------------------

constexpr uint64_t kMostSpan = 1u << 31;  // elements of the bucket that one launch covers
constexpr uint64_t kMostGap = 1u << 20;   // a launch does not reach over more: its tasks would be idle

// The items still to be done. Long ones are taken in parts.
struct PackQueue {
  const PackItem* item;
  const PackItem* end;
  uint64_t taken = 0;  // elements of *item

  // Moves into `parameters` as many as one launch takes.
  template <class Parameters>
  void fill(Parameters* parameters, char* bucket, uint32_t bucket_size, uint32_t tensor_size) {
    // Chunks begin where 16-byte vectors do.
    const uint64_t base = (item->offset + taken) / kVectorBytes * kVectorBytes;
    uint64_t reached = item->offset + taken;
    parameters->bucket = bucket + base * bucket_size;
    parameters->entries = 0;
    while (item != end && parameters->entries < Parameters::kCapacity) {
      const uint64_t start = item->offset + taken;
      if (start < reached || start - reached > kMostGap || start - base >= kMostSpan) return;
      const uint64_t count = std::min(item->count - taken, kMostSpan - (start - base));
      const uint32_t entry = parameters->entries++;
      parameters->offset[entry] = static_cast<uint32_t>(start - base);
      parameters->count[entry] = static_cast<uint32_t>(count);
      parameters->tensor[entry] = static_cast<char*>(item->tensor) + taken * tensor_size;
      reached = start + count;
      taken += count;
      if (taken < item->count) return;
      ++item;
      taken = 0;
    }
  }
};

template <class Body, class Launch>
int pack_some(PackQueue* queue, const PackArgs& args, bool to_bucket, Launch& launch) {
  typename Body::Parameters parameters;  // not initialised: it is long, and the first entries matter only
  queue->fill(&parameters, static_cast<char*>(args.bucket), info(args.bucket_dtype).size, info(args.tensor_dtype).size);
  parameters.scale = static_cast<decltype(parameters.scale)>(args.scale);
  parameters.to_bucket = to_bucket;
  const uint64_t tasks = Body::prepare(&parameters);
  return launch.template run<Body>(parameters, (tasks + kThreads / kWarp - 1) / (kThreads / kWarp));
}

template <class From, class To, class Launch>
int pack_all(PackQueue queue, const PackArgs& args, bool to_bucket, Launch& launch) {
  using Small = PackBody<From, To, kSmallParameters>;
  using Large = PackBody<From, To, kLargeParameters>;
  static_assert(sizeof(typename Small::Parameters) <= kSmallParameters && Small::Parameters::kCapacity >= 240);
  static_assert(sizeof(typename Large::Parameters) <= kLargeParameters && Large::Parameters::kCapacity >= 2000);
  int error = kCudaSuccess;
  while (queue.item != queue.end && !error) {
    // Conversions of float64 are too rare for more kernels.
    if constexpr (Launch::kLargeParameters && std::is_same_v<typename Small::Mover::Compute, float>) {
      // Long parameters cost time in every launch.
      if (launch.large_parameters() && queue.end - queue.item > Small::Parameters::kCapacity) {
        error = pack_some<Large>(&queue, args, to_bucket, launch);
        continue;
      }
    }
    error = pack_some<Small>(&queue, args, to_bucket, launch);
  }
  return error;
}

// Items that have something to do, by their place in the bucket.
inline std::vector<PackItem> ordered_items(const PackArgs& args, bool as_it_is) {
  std::vector<PackItem> items;
  items.reserve(args.item_count);
  const size_t size = info(args.bucket_dtype).size;
  for (int i = 0; i < args.item_count; ++i) {
    const PackItem& item = args.items[i];
    const bool in_place = static_cast<char*>(args.bucket) + item.offset * size == item.tensor;
    if (item.count && !(as_it_is && in_place)) items.push_back(item);
  }
  const auto before = [](const PackItem& a, const PackItem& b) { return a.offset < b.offset; };
  if (!std::is_sorted(items.begin(), items.end(), before)) std::stable_sort(items.begin(), items.end(), before);
  return items;
}

template <class Launch>
int pack_or_unpack(const PackArgs& args, bool to_bucket, Launch launch) {
  const bool as_it_is = args.bucket_dtype == args.tensor_dtype && args.scale == 1;
  const std::vector<PackItem> items = ordered_items(args, as_it_is);
  const PackQueue queue{items.data(), items.data() + items.size()};
  int error = kInvalidValue;
  if (as_it_is) {
    switch (info(args.bucket_dtype).size) {
      case 1: return pack_all<Opaque<uint8_t>, Opaque<uint8_t>>(queue, args, to_bucket, launch);
      case 2: return pack_all<Opaque<uint16_t>, Opaque<uint16_t>>(queue, args, to_bucket, launch);
      case 4: return pack_all<Opaque<uint32_t>, Opaque<uint32_t>>(queue, args, to_bucket, launch);
      case 8: return pack_all<Opaque<uint64_t>, Opaque<uint64_t>>(queue, args, to_bucket, launch);
      default: return pack_all<Opaque<Bits128>, Opaque<Bits128>>(queue, args, to_bucket, launch);
    }
  }
  with_float(to_bucket ? args.tensor_dtype : args.bucket_dtype, [&](auto from) {
    with_float(to_bucket ? args.bucket_dtype : args.tensor_dtype, [&](auto to) {
      error = pack_all<decltype(from), decltype(to)>(queue, args, to_bucket, launch);
    });
  });
  return error;
}

}  // namespace gpu
}  // namespace ringreduce
