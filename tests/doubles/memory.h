// Device and pinned memory of the double: blocks of host memory with a known pattern around them.
//
//   0xBD x 64 | block, at first 0xCB | 0xBD x 64       freed: 0xDD everywhere
//
// A freed block is kept for a while, so that what still reads it gets 0xDD and what still writes it
// is found. Under AddressSanitizer it is freed at once, which then finds both.
#pragma once

#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>

#include "control.h"

namespace ringreduce::doubles {

class Memory {
 public:
  enum class Kind { kDevice, kPinned };

  static Memory& get() {
    static Memory& memory = *new Memory;
    return memory;
  }

  void* allocate(size_t bytes, Kind kind) {
    char* base = static_cast<char*>(std::aligned_alloc(kZone, (bytes + 3 * kZone - 1) / kZone * kZone));
    if (!base) return nullptr;
    std::memset(base, kGuard, bytes + 2 * kZone);
    std::memset(base + kZone, kFresh, bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_[base + kZone] = {bytes, kind, State::kLive};
    return base + kZone;
  }

  // At the call that frees. False: there is no such block, or it is being freed already.
  bool begin_free(void* memory, Kind kind) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto at = blocks_.find(static_cast<char*>(memory));
    if (at == blocks_.end() || at->second.kind != kind || at->second.state != State::kLive) return false;
    at->second.state = State::kFreeing;
    return true;
  }

  // When the stream gets there.
  void finish_free(void* memory) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto at = blocks_.find(static_cast<char*>(memory));
    char* base = at->first - kZone;
    const size_t bytes = at->second.bytes;
    if (!filled(base, kZone, kGuard) || !filled(at->first + bytes, kZone, kGuard))
      rr_double_misuse("memory was written outside of a block");
    std::memset(base, kFreed, bytes + 2 * kZone);
    at->second.state = State::kFreed;
    freed_.push_back(at->first);
    freed_bytes_ += bytes;
    while (!freed_.empty() && freed_bytes_ > kKeepBytes) release(freed_.front());
  }

  long live() const {
    std::lock_guard<std::mutex> lock(mutex_);
    long live = 0;
    for (const auto& [at, block] : blocks_) live += block.kind == Kind::kDevice && block.state != State::kFreed;
    return live;
  }

  // Memory that is not ours may be anything (tensors of the tests).
  void check(const void* memory, size_t bytes, const char* what) const {
    const char* begin = static_cast<const char*>(memory);
    std::lock_guard<std::mutex> lock(mutex_);
    auto at = blocks_.upper_bound(const_cast<char*>(begin) + kZone);
    if (!bytes || at == blocks_.begin()) return;
    --at;
    const char* end = at->first + at->second.bytes;
    if (begin >= end + kZone) return;
    if (at->second.state == State::kFreed) rr_double_misuse((std::string(what) + " uses memory that was freed").c_str());
    else if (begin < at->first || begin + bytes > end)
      rr_double_misuse((std::string(what) + " reaches out of its memory").c_str());
  }

 private:
  enum class State { kLive, kFreeing, kFreed };
  struct Block {
    size_t bytes;
    Kind kind;
    State state;
  };
  static constexpr size_t kZone = 64;
  static constexpr unsigned char kGuard = 0xBD, kFresh = 0xCB, kFreed = 0xDD;
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kKeepBytes = 0;
#else
  static constexpr size_t kKeepBytes = 32 << 20;
#endif

  static bool filled(const char* at, size_t bytes, unsigned char value) {
    for (size_t i = 0; i < bytes; ++i)
      if (static_cast<unsigned char>(at[i]) != value) return false;
    return true;
  }

  void release(char* memory) {
    const size_t bytes = blocks_[memory].bytes;
    if (!filled(memory - kZone, bytes + 2 * kZone, kFreed)) rr_double_misuse("memory was written after it was freed");
    blocks_.erase(memory);
    freed_.pop_front();
    freed_bytes_ -= bytes;
    std::free(memory - kZone);
  }

  mutable std::mutex mutex_;
  std::map<char*, Block> blocks_;  // by the address that the user has
  std::deque<char*> freed_;
  size_t freed_bytes_ = 0;
};

// What host_register has pinned.
class Pins {
 public:
  static Pins& get() {
    static Pins& pins = *new Pins;
    return pins;
  }

  bool add(void* memory, size_t bytes) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [at, size] : ranges_)
      if (at / kPage <= (end - 1) / kPage && begin / kPage <= (at + size - 1) / kPage) return false;
    ranges_[begin] = bytes;
    return true;
  }
  bool remove(void* memory) {
    std::lock_guard<std::mutex> lock(mutex_);
    return ranges_.erase(reinterpret_cast<uintptr_t>(memory));
  }

 private:
  static constexpr uintptr_t kPage = 4096;
  std::mutex mutex_;
  std::map<uintptr_t, size_t> ranges_;
};

}  // namespace ringreduce::doubles
