// Memory as the system has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringreduce {

constexpr size_t kHugePage = 2 << 20;
constexpr int64_t kMostBytes = int64_t{1} << 47;  // what a process can address

}  // namespace ringreduce
