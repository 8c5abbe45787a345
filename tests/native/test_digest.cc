// Digests of memory, and the pairs in which they travel.
#include <algorithm>
#include <complex>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "common/half.h"
#include "kernels/digest.h"
#include "kernels/kernels.h"

using namespace ringreduce;

namespace {

using Bytes = std::vector<unsigned char>;

Bytes noise(size_t bytes, unsigned seed = 1) {
  std::mt19937 random(seed);
  Bytes result(bytes);
  for (auto& byte : result) byte = static_cast<unsigned char>(random());
  return result;
}

uint64_t of(const Bytes& bytes) { return digest(bytes.data(), bytes.size()); }

const size_t kSizes[] = {1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 200, 1000};

}  // namespace

TEST(every_bit_counts) {
  for (const size_t size : kSizes) {
    for (Bytes bytes : {noise(size), Bytes(size), Bytes(size, 0xff)}) {
      std::set<uint64_t> seen{of(bytes)};
      for (size_t bit = 0; bit < 8 * size; ++bit) {
        bytes[bit / 8] ^= 1u << bit % 8;
        CHECK(seen.insert(of(bytes)).second);  // nor are two changes of one bit alike
        bytes[bit / 8] ^= 1u << bit % 8;
      }
    }
  }
}

TEST(two_changed_bits_do_not_cancel_out) {
  // Signs above all: two layers whose sign has changed.
  for (const size_t word : {2, 4, 8}) {
    Bytes bytes = noise(512);
    const uint64_t before = of(bytes);
    std::set<uint64_t> seen;
    for (size_t a = word - 1; a < bytes.size(); a += word) {
      for (size_t b = a + word; b < bytes.size(); b += word) {
        bytes[a] ^= 0x80, bytes[b] ^= 0x80;
        CHECK(of(bytes) != before);
        CHECK(seen.insert(of(bytes)).second);
        bytes[a] ^= 0x80, bytes[b] ^= 0x80;
      }
    }
  }
}

TEST(the_length_counts) {
  std::set<uint64_t> seen;
  for (size_t size = 0; size < 300; ++size) CHECK(seen.insert(of(Bytes(size))).second);
}

TEST(the_order_counts) {
  for (const size_t unit : {1, 4, 8, 16, 64}) {
    Bytes bytes = noise(640);
    const uint64_t before = of(bytes);
    for (size_t a = 0; a < bytes.size(); a += unit) {
      for (size_t b = a + unit; b < bytes.size(); b += unit) {
        if (std::equal(&bytes[a], &bytes[a] + unit, &bytes[b])) continue;
        std::swap_ranges(&bytes[a], &bytes[a] + unit, &bytes[b]);
        CHECK(of(bytes) != before);
        std::swap_ranges(&bytes[a], &bytes[a] + unit, &bytes[b]);
      }
    }
  }
}

TEST(the_address_does_not_count) {
  for (const size_t size : kSizes) {
    const Bytes bytes = noise(size);
    Bytes room(size + 64);
    for (size_t shift = 0; shift < 64; ++shift) {
      std::copy(bytes.begin(), bytes.end(), room.begin() + shift);
      CHECK_EQ(digest(&room[shift], size), of(bytes));
    }
  }
}

TEST(half_of_the_bits_change) {
  Bytes bytes = noise(4096);
  const uint64_t before = of(bytes);
  int changed = 0;
  constexpr int kTries = 2000;
  for (int i = 0; i < kTries; ++i) {
    bytes[2 * i] ^= 1;
    changed += __builtin_popcountll(before ^ of(bytes));
    bytes[2 * i] ^= 1;
  }
  CHECK(changed > 31 * kTries && changed < 33 * kTries);
}

// What ranks with these digests read after a reduction with these factors.
bool differ_after(DType dtype, const std::vector<uint64_t>& digests, Scale scale) {
  const size_t bytes = kDigestElements * info(dtype).size;
  std::vector<Bytes> tails(digests.size(), Bytes(bytes, 0xab));
  std::vector<const void*> sources;
  for (size_t rank = 0; rank < digests.size(); ++rank) {
    CHECK(write_pairs(dtype, digests[rank], tails[rank].data()));
    sources.push_back(tails[rank].data());
  }
  Bytes result(bytes);
  void* to = result.data();
  reduce(dtype, Reduction::kSum, {&to, 1, sources.data(), static_cast<int>(sources.size()), kDigestElements, scale});
  bool differ = false;
  CHECK(pairs_differ(dtype, to, &differ));
  return differ;
}

TEST(pairs_say_whether_ranks_differ) {
  const Scale scales[] = {{1, 1}, {1, 1.0 / 3}, {1.0 / 1024, 1024.0 / 3}, {1e-4, 1}, {1e4, 1e-4}};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64, DType::kComplex64,
                            DType::kComplex128}) {
    for (const Scale& scale : scales) {
      for (const uint64_t bits : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x0123456789abcdef}}) {
        for (const size_t ranks : {1, 2, 3, 300}) {
          std::vector<uint64_t> digests(ranks, bits);
          CHECK(!differ_after(dtype, digests, scale));
          if (ranks == 1) continue;
          for (int bit = 0; bit < 64; ++bit) {
            digests[bit % ranks] ^= uint64_t{1} << bit;
            CHECK(differ_after(dtype, digests, scale));
            digests[bit % ranks] ^= uint64_t{1} << bit;
          }
        }
      }
    }
  }
}

TEST(a_negative_zero_is_zero) {
  std::vector<float> tail(kDigestElements, -0.0f);
  for (size_t i = 0; i < kDigestElements; i += 2) tail[i] = 2;
  bool differ = true;
  CHECK(pairs_differ(DType::kFloat32, tail.data(), &differ));
  CHECK(!differ);
}

TEST(whole_numbers_carry_no_digest) {
  char room[8 * kDigestElements];
  bool differ;
  for (const DType dtype : {DType::kInt64, DType::kUint8, DType::kBool}) {
    CHECK(!write_pairs(dtype, 1, room));
    CHECK(!pairs_differ(dtype, room, &differ));
  }
}

TEST_MAIN()
