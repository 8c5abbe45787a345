// The messages of one gradient plan between hosts: a Net that knows which are on their way, and counts them.
//
// A plan may be left in the middle of a step, by one rank, and by the others when they hear of it. What
// was sent by then must arrive somewhere, or a later plan with the same tags would take it for its own.
// So each rank tells its counterparts on the other hosts how much it has sent, and receives what it is
// told of:
//
//   host 0   sends 0 1 2, leaves     "3 sent" ─►   host 1   posted receives 0 1: posts one more, throws it away
//   host 1   sends 0, hears of it    "1 sent" ─►   host 0   posted receives 0 1: takes the second back
//
// Once all that is over (drained), nothing can come under these tags, and nothing reads or writes the plan's memory.
#pragma once

#include <cstdint>
#include <vector>

#include "net/net.h"

namespace ringreduce {

class PlanNet final : public Net {
 public:
  static constexpr int kTags = 4;       // from `first_tag` on
  // `peers`: whom this rank may exchange messages with, world ranks. `largest`: bytes of a message.
  PlanNet(Net* inner, const std::vector<int>& peers, int first_tag, int last_words_tag, size_t largest);

  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override;
  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override;
  Status test(Request* request, bool* done) override;
  void cancel(Request* request) override;

  bool busy() const { return !open_.empty(); }
  Status leave();                       // nothing is sent from now on but the counts
  Status drain(bool* moved);
  bool left() const { return left_; }
  bool drained() const { return left_ && awaited_ == 0 && open_.empty(); }
  // Nobody drives any more: takes receives back. What is still open reads the plan's memory.
  void give_up();

 private:
  struct Peer {
    int rank;
    uint32_t sent[kTags] = {}, posted[kTags] = {}, theirs[kTags] = {};
    Request last_send, last_receive;
  };
  struct Open {
    Request request;
    bool send;
    int peer, tag;                      // indices
    uint32_t number;                    // among the receives of this peer and tag
    std::vector<char> stray;            // where nobody wants the message
  };

  // A sender is at most this far ahead of its receiver: the steps of a ring or of doubling, which both take in turn.
  static constexpr uint32_t kMostAhead = 64;

  int index(int rank) const;
  void close(const Request& request);
  Status drain(Peer& peer, bool* moved);
  Status take_rest(Peer& peer);

  Net* inner_;
  std::vector<Peer> peers_;
  int first_tag_, last_words_tag_;
  size_t largest_;
  std::vector<Open> open_;
  bool left_ = false;
  int awaited_ = 0;                     // counts of peers, sent and received, that are not over
};

}  // namespace ringreduce
