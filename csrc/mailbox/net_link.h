// A link between hosts: packets travel in frames of limited size, one at a time, for which the receiver has a
// buffer; what its packets announce goes by itself, when it has been accepted.
//
//   frame   bytes | packet, payload | packet, payload | ...
#pragma once

#include <cstddef>
#include <vector>

#include "mailbox/link.h"
#include "net/net.h"

namespace ringreduce {

class NetLink final : public Link {
 public:
  // `tag`: of frames; the next one is that of data.
  NetLink(Net* net, int world_rank, int tag);
  ~NetLink() override;

  Status put(const Packet& packet, const char* payload, bool* taken) override;
  Status flush() override;
  bool sending() const override { return send_.active() || filled_ > kHeader; }
  Status next(Packet* packet, bool* there) override;
  void take(char* to) override;
  void settle() override {}
  Status move(Message* message, bool* moved) override;

 private:
  static constexpr size_t kFrameBytes = 8192;
  static constexpr size_t kHeader = sizeof(uint64_t);
  Status damaged() const;

  Net* const net_;
  const int rank_, tag_;
  std::vector<char> out_, in_;
  size_t filled_ = kHeader;        // of out_
  size_t at_ = 0, end_ = 0;        // what next() has not shown of in_
  size_t payload_ = 0;
  Request send_, receive_;
};

}  // namespace ringreduce
