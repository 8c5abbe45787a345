// Messages between the ranks of a communicator, all at once: each pipe moves as far as it can, in
// turn, until everything is there. A header goes ahead of each message and says what call it
// belongs to; the receiver compares it with its own, and so finds out when ranks disagree.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "comm.h"
#include "control.h"

namespace ringreduce::doubles {

class Exchange {
 public:
  explicit Exchange(Comm& comm) : comm_(comm), meeting_(*comm.meeting_), out_(comm.size), in_(comm.size) {}

  void send(int to, const Call& call, const void* data, size_t bytes) {
    out_[to].emplace_back(call, static_cast<char*>(const_cast<void*>(data)), bytes);
  }
  void receive(int from, const Call& call, void* data, size_t bytes) {
    in_[from].emplace_back(call, static_cast<char*>(data), bytes);
  }

  // False: the communicator was aborted, which is the only way out of a mismatch.
  bool run() {
    return comm_.wait_until([this] {
      bool finished = true;
      for (int peer = 0; peer < comm_.size; ++peer) {
        advance(&out_[peer], meeting_.pipe(comm_.rank, peer), peer, true);
        advance(&in_[peer], meeting_.pipe(peer, comm_.rank), peer, false);
        finished = finished && out_[peer].empty() && in_[peer].empty();
      }
      return finished;
    });
  }

 private:
  struct Header {
    Kind kind;
    int32_t dtype, op, root;
    uint64_t count;
    bool operator==(const Header& o) const {
      return kind == o.kind && dtype == o.dtype && op == o.op && root == o.root && count == o.count;
    }
  };
  struct Message {
    Message(const Call& call, char* data, size_t bytes) : call(call), mine(header_of(call)), data(data), bytes(bytes) {}
    Call call;
    Header mine, theirs{};
    char* data;
    size_t bytes, header_done = 0, done = 0;
    bool mismatch = false;
    bool complete() const { return header_done == sizeof(Header) && done == bytes; }
  };

  static Header header_of(const Call& call) {
    if (call.is_p2p()) return {Kind::kSend, call.dtype, 0, 0, call.count};
    return {call.kind, call.dtype, call.op, call.peer, call.count};
  }

  void advance(std::deque<Message>* messages, Pipe& pipe, int peer, bool sending) {
    const auto move = [&](char* data, size_t bytes) { return sending ? pipe.write(data, bytes) : pipe.take(data, bytes); };
    bool moved = false;
    while (!messages->empty() && !messages->front().mismatch) {
      Message& m = messages->front();
      const size_t before = m.header_done + m.done;
      if (m.header_done < sizeof(Header)) {
        char* header = reinterpret_cast<char*>(sending ? &m.mine : &m.theirs);
        m.header_done += move(header + m.header_done, sizeof(Header) - m.header_done);
        if (m.header_done == sizeof(Header) && !sending && !(m.theirs == m.mine)) mismatch(&m, peer);
      }
      if (m.header_done == sizeof(Header) && !m.mismatch) m.done += move(m.data + m.done, m.bytes - m.done);
      moved = moved || m.header_done + m.done > before;
      if (m.mismatch || !m.complete()) break;
      messages->pop_front();
    }
    if (moved) meeting_.seat(peer).bell.ring();
  }

  // The message stays, so that this rank hangs, as it would with NCCL; but it knows why.
  void mismatch(Message* m, int peer) {
    m->mismatch = true;
    const Header& h = m->theirs;
    const Call theirs{h.kind, nullptr, nullptr, h.count, h.dtype, h.op, h.root};
    const std::string text = "ranks disagree: rank " + std::to_string(comm_.rank) + " calls " + describe(m->call) + ", rank " +
                             std::to_string(peer) + " calls " + describe(theirs);
    rr_double_misuse(text.c_str());
    comm_.fail(kNcclInvalidUsage, text);
  }

  Comm& comm_;
  Meeting& meeting_;
  std::vector<std::deque<Message>> out_, in_;  // by peer
};

}  // namespace ringreduce::doubles
