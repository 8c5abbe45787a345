// Which way a large operation within one host goes: staged, or read where the tensors lie (single_copy.h).
//
// Which one is quicker depends on whether the cores share a cache, on kind, size and pages; on a virtual machine, whose
// processors move, it changes by a factor of two either way while a program runs. So both are timed as they are
// used, for each kind and power of two of the size, and the slower one is tried again now and then.
//
// All ranks go the same way, so the first one of the set decides: its word for an operation comes with the operation
// before. What counts is the slowest rank: what an operation has taken on each of them comes with the operation after.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace ringreduce {

class Ways {
 public:
  // Operations of one kind and size.
  class Record {
   public:
    bool reads() const { return reads_; }                 // how the next one goes
    void hear(bool reads) { reads_ = reads; }             // the first rank's word
    uint32_t last() const { return last_; }               // what the last one has taken here, in 0.1 us; 0: there was none
    void took(bool read, int64_t ns) {
      last_read_ = read;
      last_ = static_cast<uint32_t>(std::clamp<int64_t>(ns / 100, 1, UINT32_MAX));
    }
    void slowest(uint32_t last);                          // what it has taken on the slowest rank
    bool word();                                          // how the one after the next is to go; once an operation

   private:
    static constexpr uint32_t kFirst = 8, kAgain = 32;
    uint32_t last_ = 0, turn_ = 0;
    uint32_t usual_[2] = {};  // staged, read
    bool reads_ = false, last_read_ = false;
  };

  Record& of(uint8_t kind, size_t bytes) {
    size_t power = 0;
    while (bytes >>= 1) ++power;
    return records_[std::min<size_t>(kind, kKinds - 1)][std::min(power, kSizes - 1)];
  }

 private:
  static constexpr size_t kKinds = 16, kSizes = 40;
  std::array<std::array<Record, kSizes>, kKinds> records_{};
};

}  // namespace ringreduce
