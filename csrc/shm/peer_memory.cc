#include "shm/peer_memory.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <poll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace ringreduce {

namespace {

// Yama's level 1: a process is read by its ancestors, and by whom it names.
bool must_allow() {
  int level = 0;
  std::ifstream("/proc/sys/kernel/yama/ptrace_scope") >> level;
  return level == 1;
}

int open_pid(int pid) { return static_cast<int>(syscall(SYS_pidfd_open, pid, 0)); }

bool has_ended(int pidfd) {
  pollfd one{pidfd, POLLIN, 0};
  return poll(&one, 1, 0) > 0;
}

ssize_t read_from(int pid, const void* from, void* to, size_t bytes) {
  iovec here{to, bytes}, there{const_cast<void*>(from), bytes};
  return process_vm_readv(pid, &here, 1, &there, 1, 0);
}

std::string reason(ssize_t got, size_t wanted) {
  if (got < 0) return std::strerror(errno);
  return std::to_string(got) + " of " + std::to_string(wanted) + " bytes came";
}

}  // namespace

Status died(int rank, int pid) {
  return {Code::kPeerLost, "rank " + std::to_string(rank) + " (process " + std::to_string(pid) + " on this host) has died"};
}

PeerMemory::Word PeerMemory::offer() {
  static uint64_t word = 0;
  if (!word && getrandom(&word, sizeof word, 0) != sizeof word) word = static_cast<uint64_t>(getpid());
  if (must_allow()) prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  return {reinterpret_cast<uint64_t>(&word), word};
}

Status PeerMemory::attempt(int pid, const Word& word) {
  const int fd = open_pid(pid);
  if (fd < 0) return {Code::kSystem, "pidfd_open: " + std::string(std::strerror(errno))};
  ::close(fd);
  uint64_t value = 0;
  const ssize_t got = read_from(pid, reinterpret_cast<const void*>(word.address), &value, sizeof value);
  if (got != sizeof value) return {Code::kSystem, "process_vm_readv: " + reason(got, sizeof value)};
  if (value != word.value) return {Code::kSystem, "process " + std::to_string(pid) + " is another one here"};
  return Status::ok();
}

PeerMemory::PeerMemory(std::vector<int> ranks, std::vector<int> pids) {
  for (size_t i = 0; i < pids.size(); ++i) peers_.push_back({ranks[i], pids[i], open_pid(pids[i])});
}

PeerMemory::~PeerMemory() {
  for (const Peer& peer : peers_)
    if (peer.fd >= 0) ::close(peer.fd);
}

bool PeerMemory::readable(const void* data, size_t bytes) const {
  if (!bytes) return true;
  const char* first = static_cast<const char*>(data);
  char ends[2];
  iovec here{ends, 2}, there[2] = {{const_cast<char*>(first), 1}, {const_cast<char*>(first + bytes - 1), 1}};
  return process_vm_readv(getpid(), &here, 1, there, 2, 0) == 2;
}

Status PeerMemory::read(int rank, const char* from, char* to, size_t bytes) {
  for (const Peer& peer : peers_) {
    if (peer.rank != rank) continue;
    if (peer.fd < 0) return {Code::kSystem, "rank " + std::to_string(rank) + " cannot be watched (pidfd_open failed)"};
    const ssize_t got = read_from(peer.pid, from, to, bytes);
    const bool gone = got < 0 && errno == ESRCH;  // its memory is taken away before its pidfd tells
    const std::string why = got == static_cast<ssize_t>(bytes) ? "" : reason(got, bytes);
    if (gone || has_ended(peer.fd)) return died(rank, peer.pid);
    if (why.empty()) return Status::ok();
    return {Code::kSystem, "the memory of rank " + std::to_string(rank) + " (process " + std::to_string(peer.pid) +
                               ") cannot be read: " + why};
  }
  return {Code::kSystem, "rank " + std::to_string(rank) + " is on another host: its memory cannot be read"};
}

char* PeerMemory::scratch(size_t bytes) {
  if (scratch_.size() < bytes) scratch_.resize(bytes);
  return scratch_.data();
}

}  // namespace ringreduce
