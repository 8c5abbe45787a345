// 64-byte vectors, for CPUs with AVX-512 F, BW, DQ and VL. AVX-512 has fused multiply-adds;
// the build's -ffp-contract=off keeps them out, so that every table gives the same bits.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/table.h"
#include "kernels/vector.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace ringreduce {
namespace {

constexpr int kVectorBytes = 64;

// Masked, with every lane set: the plain forms draw false warnings from g++ 12.
RR_INLINE Vector<float, 16> widen(Vector<uint16_t, 16> half) {
  return (Vector<float, 16>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half);
}
RR_INLINE Vector<uint16_t, 16> narrow(Vector<float, 16> value) {
  constexpr int kRounding = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return (Vector<uint16_t, 16>)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, kRounding);
}
RR_INLINE Vector<uint32_t, 16> lengthen(Vector<uint16_t, 16> value) {
  return (Vector<uint32_t, 16>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)value);
}
RR_INLINE Vector<uint16_t, 16> shorten(Vector<uint32_t, 16> value) {
  return (Vector<uint16_t, 16>)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)value);
}
template <class V>
RR_INLINE void stream(void* to, V vector) {
  if constexpr (sizeof(V) == 32) _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)vector);
  if constexpr (sizeof(V) == 64) _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)vector);
}
RR_INLINE void stream_end() { _mm_sfence(); }

}  // namespace
}  // namespace ringreduce

#include "kernels/lanes.h"
#include "kernels/body.h"

namespace ringreduce {
constexpr Table kTable = make_table("avx512");
const Table kAvx512Table = kTable;
}  // namespace ringreduce

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
