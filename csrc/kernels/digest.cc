#include "kernels/digest.h"

#include <cstring>

namespace ringreduce {

namespace {

__extension__ using Uint128 = unsigned __int128;

// Four lanes, since one product waits 4 to 5 cycles for the one before it and a core can begin one in every
// cycle. Each takes 16 bytes of a block.
constexpr int kLanes = 4;
constexpr size_t kBlock = kLanes * 16;
constexpr uint64_t kKey[kLanes] = {0x9e3779b97f4a7c15ull, 0xbf58476d1ce4e5b9ull, 0x94d049bb133111ebull,
                                   0xd6e8feb86659fd93ull};

// Both halves of the product: the low one alone would never bring a word's top bits to the others, so that two
// changed signs would cancel out.
uint64_t fold(uint64_t a, uint64_t b) {
  const Uint128 product = static_cast<Uint128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t word(const unsigned char* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

void add_block(const unsigned char* block, uint64_t* lane) {
  for (int i = 0; i < kLanes; ++i) lane[i] = fold(word(block + 16 * i) ^ kKey[i], word(block + 16 * i + 8) ^ lane[i]);
}

// The numbers of a type, read as whole numbers of the same size. A complex element has two of them.
template <class Bits>
struct Numbers {
  Bits one;          // 1.0
  size_t stride = 1; // numbers in an element

  void write(uint64_t bits, void* to) const {
    std::memset(to, 0, kDigestElements * stride * sizeof(Bits));
    auto* numbers = static_cast<Bits*>(to);
    for (size_t i = 0; i < kDigestElements / 2; ++i) numbers[(2 * i + !(bits >> i & 1)) * stride] = one;
  }

  bool differ(const void* from) const {
    const auto* numbers = static_cast<const Bits*>(from);
    constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
    const auto nonzero = [&](size_t element) { return (numbers[element * stride] & ~kSign) != 0; };
    for (size_t i = 0; i < kDigestElements; i += 2)
      if (nonzero(i) && nonzero(i + 1)) return true;
    return false;
  }
};

// Calls `use` with the type's Numbers. False where it has none.
template <class Use>
bool with_numbers(DType dtype, Use use) {
  const DTypeInfo& type = info(dtype);
  const size_t parts = type.parts();
  if (!type.one) return false;
  switch (type.size / parts) {
    case 2: return use(Numbers<uint16_t>{static_cast<uint16_t>(type.one), parts}), true;
    case 4: return use(Numbers<uint32_t>{static_cast<uint32_t>(type.one), parts}), true;
    default: return use(Numbers<uint64_t>{type.one, parts}), true;
  }
}

}  // namespace

uint64_t digest(const void* data, size_t bytes) {
  const auto* from = static_cast<const unsigned char*>(data);
  uint64_t lane[kLanes];
  // Not a lane's own key: then a block's first two words could change places.
  for (int i = 0; i < kLanes; ++i) lane[i] = kKey[(i + 1) % kLanes];
  size_t left = bytes;
  for (; left >= kBlock; left -= kBlock, from += kBlock) add_block(from, lane);
  if (left) {
    unsigned char block[kBlock] = {};
    std::memcpy(block, from, left);
    add_block(block, lane);
  }
  uint64_t all = fold(bytes ^ kKey[0], kKey[1]);
  for (uint64_t of_lane : lane) all = fold(all ^ kKey[2], of_lane ^ kKey[3]);
  return all;
}

bool write_pairs(DType dtype, uint64_t bits, void* to) {
  return with_numbers(dtype, [&](const auto& numbers) { numbers.write(bits, to); });
}

bool pairs_differ(DType dtype, const void* from, bool* differ) {
  return with_numbers(dtype, [&](const auto& numbers) { *differ = numbers.differ(from); });
}

}  // namespace ringreduce
