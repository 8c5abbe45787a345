// float16 one number at a time: what the scalar kernels use, and what the vector kernels'
// instructions (F16C, AVX-512) do, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

namespace ringreduce {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Exact. A signalling NaN becomes quiet and keeps the rest of its payload.
inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
  if (exponent == 0) return float_of(sign | bits_of(static_cast<float>(fraction) * 0x1p-24f));
  if (exponent == 0x1f) return float_of(sign | 0x7f800000 | (fraction ? 0x400000 : 0) | fraction << 13);
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);  // 112: the biases are 127 and 15
}

// Rounds to nearest, ties to even. NaN stays NaN (quiet, the payload cut short).
inline uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude >= 0x477ff000) {  // 65520, halfway from the largest half to 2^16
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {
    // Below 2^-14 halves are multiples of 2^-24, which is the spacing of floats from 0.5 to 1:
    // the addition rounds.
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace ringreduce
