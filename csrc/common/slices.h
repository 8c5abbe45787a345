// How bytes are divided. Pure arithmetic.
//
//   chunk    what one rank stages in one step of the in-host channel
//   slice    the part of a chunk (or bucket) that one rank reduces for all
//   portion  the part of a slice that goes round the ring between hosts as one
#pragma once

#include <algorithm>
#include <cstddef>

namespace ringreduce {

// A cache line: slices begin on one, so that no two ranks write the same line; a multiple of
// every element size, so that no element is cut.
constexpr size_t kLine = 64;

struct Range {
  size_t begin = 0, end = 0;  // bytes
  size_t bytes() const { return end - begin; }
};

inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }
inline size_t round_up(size_t a, size_t to) { return divide_up(a, to) * to; }

// Part `index` of `parts` nearly equal ones, in whole lines but for the last.
inline Range slice(size_t bytes, int parts, int index) {
  const size_t lines = divide_up(bytes, kLine);
  const size_t begin = lines * index / parts * kLine;
  const size_t end = lines * (index + 1) / parts * kLine;
  return {std::min(begin, bytes), std::min(end, bytes)};
}

// Chunk `index` of the pieces of `chunk` bytes that `bytes` divides into; empty past the end.
inline Range chunk_range(size_t bytes, size_t chunk, size_t index) {
  const size_t begin = std::min(bytes, chunk * index);
  return {begin, std::min(bytes, begin + chunk)};
}

}  // namespace ringreduce
