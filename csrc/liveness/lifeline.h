// News of life and death between hosts, apart from the messages that carry data: TCP connections in the tree of hosts
// (agreement/host_tree.h). Two ranks of each host are its guardians, the lowest and the highest, each connected to
// both of the host above, so that the death of one does not cut a host off. Connections come ready and authenticated (_lifecycle/lifeline.py).
//
//        root ◄── cause ── host 1 ◄── cause ── host 9          what a guardian knows goes up;
//        root ── verdict ─► host 1 ── verdict ─► host 9        the root decides, and that comes down
//
// Everything is done by the thread of Watch; nothing blocks.
#pragma once

#include <string>
#include <vector>

#include <poll.h>

#include "liveness/cause.h"

namespace ringreduce {

class Lifeline {
 public:
  struct Link {
    int fd = -1;    // a connected stream socket, which is this object's from now on
    int peer = 0;   // rank of the world at the other end
    bool up = false;  // towards the root
  };
  enum class Type : uint32_t { kCause = 1, kVerdict, kGoodbye };
  struct News {
    enum class What { kCause, kVerdict, kClosed, kSilent } what;  // kSilent: nothing was acknowledged for too long
    int peer;
    Cause cause;
  };

  // What is sent and not acknowledged for `silence_s` means that the other host cannot be reached.
  Lifeline(const std::vector<Link>& links, double silence_s);
  ~Lifeline();

  bool has_up() const;
  void send_up(const Cause& cause);
  void send_verdict(const Cause& cause);  // to all
  void say_goodbye();                     // what comes later is no death

  void add_to(std::vector<pollfd>* polled) const;          // one for each link
  void take(const pollfd* polled, std::vector<News>* news);  // after poll()

 private:
  struct Open : Link {
    std::string in, out;
  };
  void send(Open& link, Type type, const Cause& cause);
  void flush(Open& link);
  void receive(Open& link, std::vector<News>* news);
  bool parse(Open& link, std::vector<News>* news);  // false: what came is no news
  void close(Open& link);

  std::vector<Open> links_;
};

}  // namespace ringreduce
