#include "liveness/how_ended.h"

#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

#include <sys/ioctl.h>
#include <sys/wait.h>

namespace ringreduce {

namespace {

// PIDFD_GET_INFO of <linux/pidfd.h> (Linux 6.15), which older systems lack. The status is there once its parent has reaped it.
struct PidInfo {
  uint64_t mask, cgroup;
  uint32_t ids[11];
  int32_t exit_code;
  uint64_t core_dump, supported;
};
constexpr uint64_t kExit = 1 << 3;

bool from_pidfd(int pidfd, int* status) {
  PidInfo info{};
  info.mask = kExit;
  if (ioctl(pidfd, _IOWR(0xFF, 11, PidInfo), &info) != 0 || !(info.mask & kExit)) return false;
  *status = info.exit_code;
  return true;
}

// The last field of /proc/PID/stat, as long as its parent has not reaped it.
bool from_proc(int pid, int* status) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text) || text.rfind(')') == std::string::npos) return false;
  std::istringstream fields(text.substr(text.rfind(')') + 1));
  char state = 0;
  fields >> state;
  if (state != 'Z' && state != 'X') return false;
  for (std::string field; fields >> field;) text = field;
  *status = std::atoi(text.c_str());
  return true;
}

// The counter `name` of a file of lines "name value"; -1: there is none.
int64_t counter(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  std::string key;
  for (int64_t value; file >> key >> value;)
    if (key == name) return value;
  return -1;
}

}  // namespace

int64_t MemoryKills::count() {
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t path = line.find(':', line.find(':') + 1);
    if (path == std::string::npos) continue;
    const std::string controllers = line.substr(line.find(':') + 1, path - line.find(':') - 1), at = line.substr(path + 1);
    int64_t kills = -1;
    if (controllers.empty()) kills = counter("/sys/fs/cgroup" + at + "/memory.events", "oom_kill");
    if (controllers == "memory") kills = counter("/sys/fs/cgroup/memory" + at + "/memory.oom_control", "oom_kill");
    if (kills >= 0) return kills;
  }
  return counter("/proc/vmstat", "oom_kill");
}

std::string how_ended(int pidfd, int pid, const MemoryKills& kills) {
  int status = 0;
  bool known = false;
  for (int attempt = 0; attempt < 20 && !known; ++attempt) {
    if (attempt) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    known = from_pidfd(pidfd, &status) || from_proc(pid, &status);
  }
  if (!known) return "";
  if (!WIFSIGNALED(status)) return "exit status " + std::to_string(WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  std::string text = "killed by signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
  if (signal == SIGKILL && kills.more()) text += ", as memory ran out: the kernel has killed processes for that since init()";
  return text;
}

}  // namespace ringreduce
