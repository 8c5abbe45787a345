// Point-to-point messages between ranks: the one interface the algorithms see of whatever
// connects hosts. Implementations: MpiNet (mpi_net.h), LoopbackNet (threads of one process,
// loopback_net.h) and FaultNet (a wrapper that breaks things on purpose, fault_net.h).
//
// All calls are nonblocking. Messages from one rank to another with one tag arrive in order.
// A Net is used by one thread at a time (the engine's mutex sees to that).
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/status.h"

namespace ringreduce {

// A transfer in flight, or nothing (the default). Owned by whoever started it, who calls
// test() until it is done or cancel(); plain data, copies refer to the same transfer.
struct Request {
  int64_t id = -1;
  bool active() const { return id >= 0; }
};

class Net {
 public:
  virtual ~Net() = default;

  // The buffer stays untouched (isend) or unread (irecv) until test() says done. `bytes` is
  // 64-bit: long messages are split inside, by the same rule on both sides. A receive may be
  // longer than the message only if both are below kSplitBytes.
  virtual Status isend(int to, int tag, const void* data, size_t bytes, Request* request) = 0;
  virtual Status irecv(int from, int tag, void* data, size_t bytes, Request* request) = 0;

  // Sets *done and clears the request when the transfer is over: finished, or failed if an
  // error is returned. An inactive request is done.
  virtual Status test(Request* request, bool* done) = 0;

  // Gives a receive up. Clears the request; the buffer is free afterwards. A message that is
  // arriving already is taken in and lost. A send cannot be taken back: cancel only forgets
  // it, and its buffer must stay readable as long as the process uses the network.
  virtual void cancel(Request* request) = 0;

  // Of a message that was sent, a part may still lie on this side although test() has said done, and leave only
  // while the library is called (so it is in Open MPI over TCP: the last word on a long message waits behind it
  // for the socket). True for some time after a send of such a length, and does what can be done about it:
  // whoever waits for something else, or for nothing, is to call it every millisecond meanwhile.
  virtual bool flush() { return false; }

  static constexpr size_t kSplitBytes = size_t{1} << 30;
  static constexpr int kMaxTag = 32767;  // what the MPI standard guarantees
};

}  // namespace ringreduce
