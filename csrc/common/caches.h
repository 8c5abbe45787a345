// The caches of this machine's cores, as the system describes the first one: the same for all ranks of a host.
#pragma once

#include <cstddef>

namespace ringreduce {

struct Caches {
  size_t l2 = 0, l3 = 0;  // bytes; 0: unknown
};

const Caches& caches();

// What a rank stages in one step of an operation that the caches hold: the ranks take turns sooner.
constexpr size_t kSmallChunk = 256 << 10;

// What a rank stages in one step of a larger one, where so many ranks of one host do.
size_t staging_bytes(const Caches& caches, int ranks);

}  // namespace ringreduce
