// A Net that breaks things on purpose, round any other Net: it lets transfers come late, fail, come
// with other contents, or never finish, by their place in the order in which this rank starts them. Tests use it to
// see that every failure of the network ends in a clear error and never in a hang.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "net/net.h"

namespace ringreduce {

struct Fault {
  enum class Direction { kSend, kReceive, kAny };
  enum class Action {
    kDelay,   // done at the earliest after `tests` calls of test()
    kFail,    // test() returns `status`; nothing is transferred
    kRefuse,  // isend() or irecv() itself returns `status`
    kDrop,    // never done; nothing is transferred
    kCorrupt, // received, then handed to `corrupt` before the receiver sees it
  };
  static constexpr int64_t kForever = std::numeric_limits<int64_t>::max();

  Direction direction = Direction::kAny;
  int64_t nth = 0;    // the first transfer hit, counted from 0 among those of this direction
  int64_t count = 1;  // how many in a row; kForever with kDrop makes this rank look dead
  Action action = Action::kDrop;
  int64_t tests = 0;
  Status status = Status(Code::kSystem, "injected fault");
  std::function<void(int tag, char* data, size_t bytes)> corrupt = {};
};

class FaultNet final : public Net {
 public:
  FaultNet(std::unique_ptr<Net> inner, std::vector<Fault> faults);

  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override;
  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override;
  Status test(Request* request, bool* done) override;
  void cancel(Request* request) override;

 private:
  struct Transfer {
    Request inner;
    Fault::Action action;
    int64_t tests;
    Status status;
    std::function<void()> corrupt;
  };
  // The fault that hits the transfer which starts now, or null. Counts the transfer.
  const Fault* next_fault(Fault::Direction direction);
  // Starts through the inner net what is not hit by a fault that prevents it.
  template <class Start>
  Status start(Fault::Direction direction, Request* request, Start start_inner, int tag = 0, char* data = nullptr, size_t bytes = 0);

  const std::unique_ptr<Net> inner_;
  const std::vector<Fault> faults_;
  int64_t sends_ = 0, receives_ = 0;
  int64_t next_id_ = 0;
  std::unordered_map<int64_t, Transfer> transfers_;  // all in flight, faulty or not
};

}  // namespace ringreduce
