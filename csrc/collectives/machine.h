// A collective in execution: a resumable state machine that never waits. The engine calls
// advance() until done().
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "collectives/ways.h"
#include "shm/peer_memory.h"
#include "shm/staging.h"
#include "ops/topology.h"
#include "common/status.h"
#include "net/net.h"

namespace ringreduce {

// Keeps the long messages of a channel in order: few at a time, the one that was ready first goes
// first. MPI shares a link among all messages in flight, so many would all arrive at the end of a step,
// and the next hosts, who need one of them to go on, would have nothing to send until then.
class SendWindow {
 public:
  uint64_t take() { return taken_++; }
  bool open(uint64_t ticket) const { return ticket < done_ + kMost; }
  void done() { ++done_; }
  void lift() { done_ = UINT64_MAX / 2; }  // tickets were taken that nobody will use

 private:
  static constexpr uint64_t kMost = 2;  // while one is on its way, the next one's receiver is asked
  uint64_t taken_ = 0, done_ = 0;
};

// What a machine runs over: the ranks, their in-host channel, and the net between hosts with
// a range of tags of its own.
struct Channel {
  const Topology* topology = nullptr;
  Staging stream;
  Net* net = nullptr;  // null where the set spans one host
  PeerMemory* peers = nullptr;  // null where it cannot be read
  bool read_any_size = false;   // read it always, however little there is to read
  std::shared_ptr<Ways> ways = std::make_shared<Ways>();
  std::shared_ptr<SendWindow> sends = std::make_shared<SendWindow>();
  int first_tag = 0;

  static constexpr int kTags = 40;  // tags per channel
  // Tags within a channel. Transfers of an operation's step t use tag t % kSlots: counted within
  // the operation, as the steps of the in-host channel differ from host to host.
  static constexpr int kTreeUp = 32, kTreeDown = 33, kDirect = 34, kDirectHeader = 35, kLastWords = 36, kMail = 37, kMailData = 38;

  int tag(int index) const { return first_tag + index; }
  int world(int set_rank) const { return topology->world[set_rank]; }
};

class Machine {
 public:
  virtual ~Machine() = default;

  // Does what can be done without waiting, in pieces small enough that a caller may look
  // at other things in between. Sets *moved if anything was done.
  virtual Status advance(bool* moved) = 0;
  virtual bool done() const = 0;
  // True while a transfer between hosts is in flight (somebody must poll the net).
  virtual bool on_net() const { return false; }
  virtual std::string where() const = 0;  // for hang reports
};

}  // namespace ringreduce
