#include "common/log.h"

#include <atomic>
#include <cstdio>

#include "common/settings.h"

namespace ringreduce {

static std::atomic<int> log_rank{-1};

void set_log_rank(int rank) { log_rank = rank; }

void log(int level, const std::string& message) {
  if (level > settings().log_level) return;
  const int rank = log_rank;
  const std::string who = rank < 0 ? "ringreduce: " : "ringreduce[" + std::to_string(rank) + "]: ";
  const std::string line = who + message + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace ringreduce
