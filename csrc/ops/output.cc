#include "ops/output.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <numeric>

#include <sys/mman.h>

#include "common/pages.h"
#include "common/slices.h"
#include "common/settings.h"

namespace ringreduce {

namespace {

constexpr size_t kLarge = 2 * kHugePage;  // from here on in whole huge pages: 1/512 of the faults
constexpr size_t kKept = 64 << 10;        // smaller ones malloc itself gives again

class Kept {
 public:
  // Of several that fit the smallest, if it is not more than twice too large; else null.
  char* take(size_t* size) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto best = blocks_.end();
    for (auto at = blocks_.begin(); at != blocks_.end(); ++at)
      if (at->size >= *size && at->size <= 2 * *size && (best == blocks_.end() || at->size < best->size)) best = at;
    if (best == blocks_.end()) return nullptr;
    char* data = best->data;
    *size = best->size;
    bytes_ -= best->size;
    blocks_.erase(best);
    return data;
  }

  // Room is made by what has been kept longest.
  void give(char* data, size_t size, size_t most) noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      blocks_.push_back({data, size});
    } catch (const std::bad_alloc&) {
      return std::free(data);
    }
    bytes_ += size;
    while (!blocks_.empty() && (bytes_ > most || !most)) {
      bytes_ -= blocks_.front().size;
      std::free(blocks_.front().data);
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  struct Block {
    char* data;
    size_t size;
  };
  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t bytes_ = 0;
};

// Results may outlive every other static object.
Kept& kept() {
  static Kept& all = *new Kept;
  return all;
}

}  // namespace

Status Output::check_counts(const std::vector<int>& world) const {
  int64_t sum = 0;
  for (size_t rank = 0; rank < counts.size(); ++rank) {
    if (counts[rank] >= 0 && counts[rank] <= kMostBytes - sum) {
      sum += counts[rank];
      continue;
    }
    return {Code::kPeerLost, "rank " + std::to_string(world[rank]) + " has announced " + std::to_string(counts[rank]) +
                                 " bytes, which cannot be: its memory or a message was damaged"};
  }
  return Status::ok();
}

Status Output::allocate() {
  bytes = std::accumulate(counts.begin(), counts.end(), size_t{0});
  if (into.size() == 1 && into[0].bytes == bytes) {
    data = std::shared_ptr<char>(std::shared_ptr<char>(), into[0].data);
    return Status::ok();
  }
  if (source) return source(bytes, &data);
  const size_t unit = bytes >= kLarge ? kHugePage : kLine;
  size_t size = round_up(bytes + 1, unit);
  char* block = size >= kKept ? kept().take(&size) : nullptr;
  if (!block) {
    block = static_cast<char*>(std::aligned_alloc(unit, size));
    if (block && unit == kHugePage) madvise(block, size, MADV_HUGEPAGE);  // a hint: failure does no harm
  }
  if (!block) return {Code::kSystem, "no memory for a result of " + std::to_string(bytes) + " bytes"};
  data.reset(block, [size](char* dropped) {
    if (size >= kKept) kept().give(dropped, size, settings().result_bytes);
    else std::free(dropped);
  });
  return Status::ok();
}

Status Output::finish() {
  size_t room = 0;
  for (const Span& span : into) room += span.bytes;
  if (!into.empty() && room != bytes)
    return {Code::kInvalid, "output: has room for " + std::to_string(room) + " bytes, the result has " + std::to_string(bytes)};
  const char* from = data.get();
  for (const Span& span : into) {
    if (from && from != span.data) std::memcpy(span.data, from, span.bytes);
    if (from) from += span.bytes;
  }
  if (!into.empty()) data.reset();
  return Status::ok();
}

void drop_kept_results() { kept().give(nullptr, 0, 0); }

}  // namespace ringreduce
