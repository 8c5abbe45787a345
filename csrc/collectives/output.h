// The result of an operation whose size is known only once the ranks have met (allgather,
// alltoall): owned memory, handed to Python without a copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "common/status.h"

namespace ringreduce {

struct Output {
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data;
  size_t bytes = 0;
  std::vector<int64_t> counts;  // bytes from each rank of the set

  Status allocate() {
    bytes = 0;
    for (int64_t count : counts) bytes += static_cast<size_t>(count);
    data.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)));
    if (data) return Status::ok();
    return {Code::kSystem, "no memory for a result of " + std::to_string(bytes) + " bytes"};
  }
};

}  // namespace ringreduce
