// The memory of the other processes of this host, read where it lies (process_vm_readv): a tensor
// that a peer reads from its owner need not be staged.
//
// Whether the system allows it (same user, Yama, seccomp) is found out by trying: every rank offers a
// word, whose address and value the others know from the meeting, and they read it. All ranks of a host
// can read each other, or none is read.
//
// A pid may be another process's by the time of the read, so each peer is held by a pidfd: a peer that
// has not ended when a read is over is the one that was read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/status.h"

namespace ringreduce {

Status died(int rank, int pid);

class PeerMemory {
 public:
  struct Word {
    uint64_t address = 0, value = 0;
  };
  // That of this process. From now on the others may read, also where Yama wants to be told.
  static Word offer();
  // Reads the word of another process; an error says why that cannot be done.
  static Status attempt(int pid, const Word& word);

  // `ranks` and `pids` of this host, by local index.
  PeerMemory(std::vector<int> ranks, std::vector<int> pids);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // Whether others can read this process's memory there, as far as its ends tell: that of a device, for one, only its owner can.
  bool readable(const void* data, size_t bytes) const;

  // Bytes of the rank's memory; `from` is an address of its process. What comes was read from that process.
  Status read(int rank, const char* from, char* to, size_t bytes);
  // Memory of this process for what has been read and is needed but once.
  char* scratch(size_t bytes);

 private:
  struct Peer {
    int rank, pid, fd;
  };
  std::vector<Peer> peers_;
  std::vector<char> scratch_;
};

}  // namespace ringreduce
