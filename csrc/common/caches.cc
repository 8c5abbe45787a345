#include "common/caches.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace ringreduce {

namespace {

constexpr size_t kMost = 1 << 20;
constexpr size_t kInFlight = 4;  // steps

// "512K"
size_t size_of(int level) {
  const std::string cache = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(level);
  size_t size = 0;
  char unit = 0;
  std::ifstream(cache + "/size") >> size >> unit;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : 0;
}

}  // namespace

const Caches& caches() {
  static const Caches all = {size_of(2), size_of(3)};  // index 0 and 1 are data and instructions of level 1
  return all;
}

// What a core has just written and still has in its L2 is dear for another one to read; what has left for the L3
// is cheap. A chunk of two L2 has left, but for its end, when it is read. All that is staged should stay in the L3.
// With an L2 of 2 MiB (Intel) small chunks have been the best: nothing leaves it in time.
size_t staging_bytes(const Caches& caches, int ranks) {
  const size_t leaves_l2 = 2 * caches.l2;
  if (!leaves_l2 || leaves_l2 > kMost) return kSmallChunk;
  return std::clamp(caches.l3 / kInFlight / static_cast<size_t>(ranks) / 4096 * 4096, kSmallChunk, std::max(kSmallChunk, leaves_l2));
}

}  // namespace ringreduce
