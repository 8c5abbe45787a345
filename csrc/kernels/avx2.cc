// 32-byte vectors, for CPUs with AVX2 and F16C. FMA is not asked for: results must have the
// same bits with every table.
#if defined(__x86_64__)

#include <immintrin.h>

#include "kernels/table.h"
#include "kernels/vector.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace ringreduce {
namespace {

constexpr int kVectorBytes = 32;

RR_INLINE Vector<float, 8> widen(Vector<uint16_t, 8> half) { return (Vector<float, 8>)_mm256_cvtph_ps((__m128i)half); }
RR_INLINE Vector<uint16_t, 8> narrow(Vector<float, 8> value) {
  return (Vector<uint16_t, 8>)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
RR_INLINE Vector<uint32_t, 8> lengthen(Vector<uint16_t, 8> value) {
  return (Vector<uint32_t, 8>)_mm256_cvtepu16_epi32((__m128i)value);
}
RR_INLINE Vector<uint16_t, 8> shorten(Vector<uint32_t, 8> value) {
  const __m256i wide = (__m256i)value;
  return (Vector<uint16_t, 8>)_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
template <class V>
RR_INLINE void stream(void* to, V vector) {
  if constexpr (sizeof(V) == 16) _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)vector);
  if constexpr (sizeof(V) == 32) _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)vector);
}
RR_INLINE void stream_end() { _mm_sfence(); }

}  // namespace
}  // namespace ringreduce

#include "kernels/lanes.h"
#include "kernels/body.h"

namespace ringreduce {
constexpr Table kTable = make_table("avx2");
const Table kAvx2Table = kTable;
}  // namespace ringreduce

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
