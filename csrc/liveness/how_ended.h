// How a process ended that is none of ours to wait for.
#pragma once

#include <cstdint>
#include <string>

namespace ringreduce {

// Kills by the kernel for lack of memory: in this process's cgroup, or where that cannot be read on the whole machine.
class MemoryKills {
 public:
  MemoryKills() : at_first_(count()) {}
  bool more() const { return count() > at_first_; }

 private:
  static int64_t count();
  const int64_t at_first_;
};

// "killed by signal 9 (Killed)", "exit status 3"; "" where the system does not tell. It has ended; this may take 20 ms.
std::string how_ended(int pidfd, int pid, const MemoryKills& kills);

}  // namespace ringreduce
