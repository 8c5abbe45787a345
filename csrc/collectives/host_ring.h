// The ring between hosts, for one buffer: H parts; H-1 steps reduce-scatter, H-1 steps allgather.
//
// The network is to be busy all the time, so nothing is waited for that is not needed: the receive of
// the next step is posted ahead (MPI then lets a long message come at once), and a step is sent as soon
// as the one before has been received, whether or not that one's own message is out.
#pragma once

#include <vector>

#include "collectives/machine.h"
#include "common/dtype.h"

namespace ringreduce {

// One rank's part in a reduction between hosts: its host's partial result, and in the end the result.
struct HostBuffer {
  char* data = nullptr;
  size_t bytes = 0;
  DType dtype = DType::kFloat32;
  Reduction reduction = Reduction::kSum;
  double post = 1.0;

  // into = mine op theirs, in an order that both sides of an exchange know.
  void combine(char* into, const char* mine, const char* theirs, bool mine_first, size_t bytes, bool last) const;
};

class HostRing {
 public:
  void start(const Channel& channel, int tag, const HostBuffer& buffer);
  Status advance(bool* moved);
  bool busy() const { return sent_ < steps_ || received_ < steps_; }

 private:
  static constexpr int kAhead = 2;  // messages in flight, each way

  Range part(int step, bool outgoing) const;
  bool gathers(int step) const { return step >= hosts_ - 1; }
  char* target(int step) { return gathers(step) ? buffer_.data + part(step, false).begin : incoming_[step % kAhead].data(); }
  Status post_receives();
  Status send_next(bool* moved);
  Status finish_sends(bool* moved);
  Status finish_receive(bool* moved);

  Channel channel_;
  HostBuffer buffer_;
  int tag_ = 0, host_ = 0, hosts_ = 1, next_ = 0, previous_ = 0;  // the neighbours as world ranks
  int steps_ = 0;
  int started_ = 0, sent_ = 0;     // sends begun and over
  static constexpr uint64_t kNone = UINT64_MAX;
  uint64_t ticket_ = kNone;        // of the send that is next
  int posted_ = 0, received_ = 0;  // receives posted, and over and combined
  Request sends_[kAhead], receives_[kAhead];
  std::vector<char> incoming_[kAhead];
};

}  // namespace ringreduce
