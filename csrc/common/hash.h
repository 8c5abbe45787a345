// 64-bit hashing for operation keys and signatures. Not cryptographic; two independent
// 64-bit hashes of a name make an accidental collision less likely than a memory error.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringreduce {

// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
// generators", OOPSLA 2014).
inline uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Folds values into one hash, order mattering.
class Hasher {
 public:
  explicit Hasher(uint64_t seed = 0x9e3779b97f4a7c15ull) : state_(seed) {}

  Hasher& add(uint64_t value) {
    state_ = mix(state_ + 0x9e3779b97f4a7c15ull + value);
    return *this;
  }
  Hasher& add_bytes(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    uint64_t word = 0;
    for (size_t i = 0; i < bytes; ++i) {
      word = word << 8 | p[i];
      if (i % 8 == 7) add(word), word = 0;
    }
    return add(word).add(bytes);
  }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_;
};

}  // namespace ringreduce
