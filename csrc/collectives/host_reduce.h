// Allreduce of one buffer between hosts: each host has contributed one rank (the rail), which
// holds its host's partial result and ends with the final one, the same bits everywhere.
//
//   ring (Patarasu, Yuan: "Bandwidth optimal all-reduce algorithms for clusters of
//   workstations", JPDC 2009), host_ring.h: each host sends 2(H-1)/H of the bytes, the least
//   possible.
//
//   recursive doubling (Thakur, Rabenseifner, Gropp: "Optimization of collective
//   communication operations in MPICH", IJHPCA 2005) for small buffers: log2(H) exchanges of
//   the whole; hosts beyond the largest power of two fold into a partner first.
#pragma once

#include <vector>

#include "collectives/host_ring.h"

namespace ringreduce {

class HostReduce {
 public:
  static constexpr size_t kDoublingBytes = 16 << 10;

  // `tag`: of this machine alone while it is busy. The rail is this rank's local index.
  void start(const Channel& channel, int tag, const HostBuffer& buffer);
  Status advance(bool* moved);
  bool busy() const { return busy_ || ring_.busy(); }

 private:
  enum class Phase { kFoldIn, kExchange, kFoldOut, kFinished };

  void enter(Phase phase);
  Status begin_step();
  Status finish_step();
  Status exchange(int send_to, const char* out, size_t out_bytes, int receive_from, char* in, size_t in_bytes);
  int peer(int host) const { return channel_.world(channel_.topology->counterpart(host, rail_)); }
  int host_of_virtual(int v) const { return v < extra_ ? 2 * v : v + extra_; }

  Channel channel_;
  HostBuffer buffer_;
  int tag_ = 0, rail_ = 0, host_ = 0;
  bool busy_ = false, started_ = false;
  Phase phase_ = Phase::kFinished;
  int step_ = 0;
  int power_ = 1, extra_ = 0, virtual_ = -1;  // doubling: 2^k hosts take part, extra_ fold in
  Request send_, receive_;
  std::vector<char> incoming_;
  HostRing ring_;
};

}  // namespace ringreduce
