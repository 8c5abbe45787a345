// The messages between this rank and the others of a process set. They stand beside the set's collectives: neither
// waits for the other.
//
//   post(send) ──► queue of its destination ──► link ═══► link ──► matching ◄── post(receive)
//                                                                  │ no receive: a small one is kept, and of a
//                                                                  ▼ large one that it has been announced
//                                                               finished
//
// A rank looks into its mailbox while it has a message in flight, not else.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "collectives/machine.h"
#include "mailbox/host_link.h"
#include "mailbox/matching.h"
#include "mailbox/message.h"

namespace ringreduce {

class Mailboxes {
 public:
  // `farewell` says of a rank of the world that it has shut down. `memory`: of the set on this host. `net`: null on one host; `first_tag`: of frames, the next one of data.
  Mailboxes(int set_id, const Topology* topology, MailMemory memory, Net* net, int first_tag,
            std::function<std::string(int)> farewell);
  ~Mailboxes();

  // Takes it in or refuses it (an argument is bad, there is no memory).
  Status enlist(const MessageRef& message);
  // Begins, and does what can be done at once.
  Status post(const MessageRef& message);
  Status advance(bool* moved);
  // The same for all that has arrived so far; advance() gives others their turn.
  Status drain(bool* moved);

  bool idle() const { return in_flight_.empty(); }
  // A message between hosts may arrive, or leave, that only polling shows.
  bool on_net() const;
  // What was handed over, or is to be answered, and has not left this rank.
  bool sending() const;
  // Frames on their way, and large messages that are moving: other ranks count on it.
  bool committed() const;

  // Gives up what nobody counts on: all of it, or what was posted by then and waits for one of these ranks (of the world).
  Status withdraw(Code code, const std::string& why, const std::vector<int>* gone = nullptr, int64_t posted_by_ns = INT64_MAX);
  // A receive for which nothing has come; false for any other message.
  bool take_back(const MessageRef& message);
  void fail(const Status& status);

  // Messages sent to and received from each rank of the world, ever.
  struct Counts {
    std::map<int, uint64_t> sent, received;
  };
  const Counts& counts() const { return counts_; }

  // For reports (report.cc).
  std::string missing(const Message& message) const;
  std::string state(int64_t now) const;
  void warn_of_stalls(int64_t now, int64_t after_ns);

 private:
  struct Peer {
    int rank = 0, world = 0;            // in the set, in the world
    std::unique_ptr<Link> link;
    HostLink* on_host = nullptr;        // the link, where it is one
    std::deque<Packet> answers;         // and withdrawals
    std::deque<MessageRef> queue;       // sends that have not been put
    std::deque<MessageRef> leaving;     // large sends that were accepted, in order
    std::deque<MessageRef> arriving;    // large receives that this rank has accepted, in order
    int waiting = 0;                    // messages in flight that wait for news of it
    bool gone = false;                  // it has shut down: nobody counts on what is on its way to it
  };

  Peer& peer(int set_rank);
  bool remote(int set_rank) const { return topology_->host_of[set_rank] != topology_->host(); }
  Status address(Message* message) const;
  void wait_for(const Message& message, int change);
  Status look(bool* moved);
  Status look(Peer& peer, bool* moved);
  Status take(Peer& peer, const Packet& packet);
  Status take_message(Peer& peer, const Packet& packet);
  Status take_data(Peer& peer, const Packet& packet);
  void take_answer(Peer& peer, const Packet& packet);
  void take_withdrawal(Peer& peer, const Packet& packet);
  void meet(Peer& peer, const MessageRef& receive);
  Status accept(Peer& peer, const Packet& packet, const MessageRef& receive);
  Status mismatch(const Message& receive, const Packet& packet) const;
  Status push(Peer& peer, bool* moved);
  Status put(Peer& peer, const MessageRef& send, bool* taken);
  Status move(std::deque<MessageRef>& messages, Peer& peer, bool* moved);
  void finish(const MessageRef& message, Status status);
  bool in_vain(Message* message, const std::vector<int>& gone, int64_t posted_by_ns) const;
  void give_up(const MessageRef& message, const Status& status);
  void drop(const MessageRef& message, const Status& status);

  const int set_id_;
  const Topology* topology_;
  const MailMemory memory_;
  Net* const net_;
  const int first_tag_;
  const std::function<std::string(int)> farewell_;

  std::unordered_map<int, Peer> peers_;  // by rank of the set
  Matching matching_;
  std::map<uint64_t, MessageRef> in_flight_;  // by number
  std::set<int> busy_;                   // peers for which something is to be put or moved
  std::set<int> remote_waiting_;         // peers on other hosts of which news are awaited
  int any_ = 0;                          // receives from any source that wait
  uint64_t posted_ = 0, news_ = 0;
  bool gave_up_ = false;                 // answers and data may come for what is no more
  Counts counts_;
};

}  // namespace ringreduce
