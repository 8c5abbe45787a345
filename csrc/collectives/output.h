// The result of an operation whose size is known only once the ranks have met (allgather,
// alltoall): owned memory, handed to Python without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include <sys/mman.h>

#include "common/status.h"

namespace ringreduce {

struct Output {
  static constexpr size_t kHugePage = 2 << 20, kLarge = 2 * kHugePage;
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data;
  size_t bytes = 0;
  std::vector<int64_t> counts;  // bytes from each rank of the set

  Status allocate() {
    bytes = 0;
    for (int64_t count : counts) bytes += static_cast<size_t>(count);
    // A large result is fresh memory: with huge pages its first touch costs 1/512 of the faults.
    const bool large = bytes >= kLarge;
    const size_t unit = large ? kHugePage : 64;
    data.reset(static_cast<char*>(std::aligned_alloc(unit, (bytes + unit) / unit * unit)));
    if (data && large) madvise(data.get(), bytes, MADV_HUGEPAGE);  // a hint: failure does no harm
    if (data) return Status::ok();
    return {Code::kSystem, "no memory for a result of " + std::to_string(bytes) + " bytes"};
  }
};

}  // namespace ringreduce
