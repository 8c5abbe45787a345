// The reference: one element at a time, for any CPU. Streaming is a hint that it ignores.
#include "common/half.h"
#include "kernels/table.h"
#include "kernels/vector.h"

namespace ringreduce {
namespace {

constexpr int kVectorBytes = 0;

RR_INLINE Vector<float, 1> widen(Vector<uint16_t, 1> half) { return Vector<float, 1>{half_to_float(half[0])}; }
RR_INLINE Vector<uint16_t, 1> narrow(Vector<float, 1> value) { return Vector<uint16_t, 1>{float_to_half(value[0])}; }
RR_INLINE Vector<uint32_t, 1> lengthen(Vector<uint16_t, 1> value) { return Vector<uint32_t, 1>{value[0]}; }
RR_INLINE Vector<uint16_t, 1> shorten(Vector<uint32_t, 1> value) {
  return Vector<uint16_t, 1>{static_cast<uint16_t>(value[0])};
}
template <class V>
RR_INLINE void stream(void* to, V vector) { __builtin_memcpy(to, &vector, sizeof(vector)); }
RR_INLINE void stream_end() {}

}  // namespace
}  // namespace ringreduce

#include "kernels/lanes.h"
#include "kernels/body.h"

namespace ringreduce {
constexpr Table kTable = make_table("scalar");
const Table kScalarTable = kTable;
}  // namespace ringreduce
