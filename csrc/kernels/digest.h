// Whether the ranks hold the same bytes, told by 64 bits that travel in a bucket of gradients.
//
//     memory ──digest()──► 64 bits ──write_pairs()──► b 1-b b 1-b ... ──reduction──► pairs_differ()
//
// A bit travels as the pair (b, 1 - b): after a sum over the ranks, scaled in any way, both are nonzero only
// where ranks had different bits. So one reduction of floating point numbers compares all ranks, and gives
// all of them the same answer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"

namespace ringreduce {

constexpr size_t kDigestElements = 128;  // of write_pairs: two for each bit

// The same for the same bytes, at whatever address; all bytes and their order count. Not cryptographic: bytes
// that were not chosen to deceive it, and are not the same, have the same digest with a chance of about 2^-62.
uint64_t digest(const void* data, size_t bytes);

// To and from kDigestElements elements of a floating point or complex type. False for another type.
bool write_pairs(DType dtype, uint64_t bits, void* to);
bool pairs_differ(DType dtype, const void* from, bool* differ);

}  // namespace ringreduce
