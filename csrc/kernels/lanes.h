// The vectors that the kernels compute with: how elements of each type are loaded, combined
// and stored. Compiled once for each instruction set, by scalar.cc, avx2.cc and avx512.cc, in
// an unnamed namespace so that nothing compiled for one of them can be linked into another.
// For the same reason there are no #includes here: the including file has already set its
// target, and a header's inline functions must not be compiled for it.
//
// The including file provides
//   kVectorBytes                          size of a register; 0: one element at a time.
//                                         Below, kFloats is how many float32 that makes
//   widen(Vector<uint16_t, kFloats>)      float16 to float32
//   narrow(Vector<float, kFloats>)        float32 to float16
//   lengthen(Vector<uint16_t, kFloats>)   16 bits to 32
//   shorten(Vector<uint32_t, kFloats>)    32 bits to 16, for values that fit
//   stream(void*, Vector), stream_end()   a store past the caches, and the fence after the last
#pragma once

namespace ringreduce {
namespace {

constexpr int lanes(size_t element) { return kVectorBytes ? kVectorBytes / element : 1; }

// Whole numbers, float32 and float64: computed with as they lie in memory. Arithmetic is done
// on `Wrapping`, the unsigned twin of a whole number, where overflow is defined.
template <typename T, typename Wrapping = T>
struct Number {
  using Element = T;
  static constexpr int kLanes = lanes(sizeof(T));
  static constexpr int kParts = 1;  // Ts in one element
  using Packed = Vector<T, kLanes>;
  using Value = Packed;
  using Wrapped = Vector<Wrapping, kLanes>;

  RR_INLINE static Value unpack(Packed packed) { return packed; }
  RR_INLINE static Packed pack(Value value) { return value; }
  RR_INLINE static Value add(Value a, Value b) { return (Value)((Wrapped)a + (Wrapped)b); }
  RR_INLINE static Value multiply(Value a, Value b) { return (Value)((Wrapped)a * (Wrapped)b); }
  using Factor = T;
  RR_INLINE static Value scale(Value value, Factor factor) { return value * factor; }
};

// Scaled in float64 and truncated; what does not fit becomes the nearest that does, NaN zero.
template <typename T>
struct Integer : Number<T, std::make_unsigned_t<T>> {
  using Base = Number<T, std::make_unsigned_t<T>>;
  using Value = typename Base::Value;
  static constexpr T kLeast = std::numeric_limits<T>::min(), kMost = std::numeric_limits<T>::max();

  // An average divides: 49 * (1.0 / 49) is a little less than 1, which would be truncated to 0.
  struct Factor {
    double times, over;
    explicit Factor(double factor) : times(factor), over(0) {
      const double inverse = 1 / factor;
      if (!(inverse > -0x1p52 && inverse < 0x1p52)) return;
      const double nearest = (double)(int64_t)(inverse + (inverse < 0 ? -0.5 : 0.5));
      if (1 / nearest == factor) over = nearest;
    }
  };

  RR_INLINE static Value scale(Value value, const Factor& factor) {
    if (factor.times != 1) scale_in_memory(&value, factor);  // int64 does not survive float64
    return value;
  }

 private:
  [[gnu::noinline]] static void scale_in_memory(Value* value, const Factor& factor) {  // spares 200 KB of code
    for (int i = 0; i < Base::kLanes; ++i) {
      const double exact = (double)(*value)[i];
      const double scaled = factor.over != 0 ? exact / factor.over : exact * factor.times;
      (*value)[i] = scaled >= (double)kMost    ? kMost
                    : scaled <= (double)kLeast ? kLeast
                    : scaled == scaled         ? (T)scaled
                                               : T(0);
    }
  }
};

template <typename T>
using Real = Number<T>;

// Sum is "or"; the other operations need nothing of their own on 0 and 1.
struct Bool : Number<uint8_t> {
  RR_INLINE static Value unpack(Packed packed) { return (Value)(packed != 0) & 1; }
  RR_INLINE static Value add(Value a, Value b) { return a | b; }
  RR_INLINE static Value scale(Value value, Factor) { return value; }
};

// The textbook product, without C's recovery of infinities from NaN. In whole vectors: from the
// same thing lane by lane g++ 12 makes fused multiply-adds in spite of -ffp-contract=off.
template <typename T>
struct Complex : Number<T> {
  static constexpr int kLanes = lanes(2 * sizeof(T)) * 2;
  static constexpr int kParts = 2;
  using Packed = Vector<T, kLanes>;
  using Value = Packed;

  RR_INLINE static Value unpack(Packed packed) { return packed; }
  RR_INLINE static Packed pack(Value value) { return value; }
  RR_INLINE static Value add(Value a, Value b) { return a + b; }
  RR_INLINE static Value multiply(Value a, Value b) {
    Value real, imaginary, turned, sign;  // of a, of a; b with its parts exchanged
    for (int i = 0; i < kLanes; i += 2) {
      real[i] = real[i + 1] = a[i];
      imaginary[i] = imaginary[i + 1] = a[i + 1];
      turned[i] = b[i + 1];
      turned[i + 1] = b[i];
      sign[i] = -1;
      sign[i + 1] = 1;
    }
    return real * b + imaginary * turned * sign;
  }
  RR_INLINE static Value scale(Value value, T factor) { return value * factor; }
};

// 16-bit floats are computed with as float32.
struct Float16 : Number<float> {
  using Element = uint16_t;
  using Packed = Vector<uint16_t, kLanes>;
  RR_INLINE static Value unpack(Packed packed) { return widen(packed); }
  RR_INLINE static Packed pack(Value value) { return narrow(value); }
};

struct BFloat16 : Number<float> {
  using Element = uint16_t;
  using Packed = Vector<uint16_t, kLanes>;
  using Bits = Vector<uint32_t, kLanes>;

  RR_INLINE static Value unpack(Packed packed) { return (Value)(lengthen(packed) << 16); }
  RR_INLINE static Packed pack(Value value) {
    const Bits bits = (Bits)value, high = bits >> 16;
    const Bits rounded = (bits + 0x7fff + (high & 1)) >> 16;  // to nearest, ties to even
    return shorten(value != value ? high | 0x40 : rounded);
  }
};

struct Sum {
  template <class L>
  RR_INLINE static typename L::Value apply(typename L::Value a, typename L::Value b) { return L::add(a, b); }
};
struct Product {
  template <class L>
  RR_INLINE static typename L::Value apply(typename L::Value a, typename L::Value b) { return L::multiply(a, b); }
};
// A NaN on either side is the result.
struct Min {
  template <class L>
  RR_INLINE static typename L::Value apply(typename L::Value a, typename L::Value b) {
    return ((a < b) | (a != a)) ? a : b;
  }
};
struct Max {
  template <class L>
  RR_INLINE static typename L::Value apply(typename L::Value a, typename L::Value b) {
    return ((a > b) | (a != a)) ? a : b;
  }
};

}  // namespace
}  // namespace ringreduce
