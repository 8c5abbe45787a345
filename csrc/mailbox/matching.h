// Which message goes to which receive: of one rank, in one process set. Messages of one source and tag are taken in
// the order in which they came, by receives in the order in which they were posted; a receive from any source takes
// the message with its tag that came first.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <vector>

#include "mailbox/link.h"
#include "mailbox/message.h"

namespace ringreduce {

// A message that nobody has asked for yet.
struct Arrival {
  int source = 0;         // rank of the set
  Packet packet;
  std::vector<char> payload = {};  // of a small one
  uint64_t place = 0;     // in the order in which they came
};

class Matching {
 public:
  void post(const MessageRef& receive);
  void withdraw(const Message& receive);
  // The receive for a message that has come, which is posted no longer; null: there is none.
  MessageRef take(int source, int tag);

  void keep(Arrival arrival);
  // It will not come; false: it is not kept here.
  bool drop(int source, int tag, uint64_t number);
  // False: nothing has come for this receive.
  bool take(const Message& receive, Arrival* arrival);
  std::vector<int> tags_from(int source) const;  // of what is kept; of any source: kAnySource

 private:
  using Receives = std::map<int, std::deque<MessageRef>>;  // by source, or kAnySource
  using Arrivals = std::map<int, std::deque<Arrival>>;     // by source
  std::unordered_map<int, Receives> receives_;             // by tag
  std::unordered_map<int, Arrivals> arrivals_;
  uint64_t place_ = 0;
};

}  // namespace ringreduce
