// The result of an operation that is not as large as its input, and often of a size that is known only once
// the ranks have met: memory of the caller's, or owned memory, handed to Python without a copy.
//
// Fresh memory costs more than the collective: the system zeroes it page by page at the first
// touch. So the memory of results that the program has dropped is kept, up to
// RINGREDUCE_RESULT_BYTES a process, and given to the next that fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "common/status.h"

namespace ringreduce {

struct Span {
  char* data;
  size_t bytes;
};

struct Output {
  std::shared_ptr<char> data;
  size_t bytes = 0;
  std::vector<int64_t> counts;  // bytes from each rank of the set
  // They come from the ranks: an error for one that is no size. `world`: set rank -> world rank.
  Status check_counts(const std::vector<int>& world) const;

  std::vector<Span> into;       // the caller's memory for it, end to end; none: there is none

  // Memory for the sum of `counts`: the caller's, if that is one piece of that size, or from `source`, if there is one.
  std::function<Status(size_t bytes, std::shared_ptr<char>* memory)> source;
  Status allocate();
  // Brings it to where it goes. An error if the caller's memory is of another size.
  Status finish();
};

// Gives back to the system what is kept. Results that are in use are not concerned.
void drop_kept_results();

}  // namespace ringreduce
