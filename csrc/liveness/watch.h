// Notices that a rank has died or cannot go on, and brings about one verdict, the same on all ranks.
//
// A futex cannot wait for a process's end or for a socket, so a thread of its own sleeps in poll() on the pidfds of the
// host's ranks and, in a guardian, on the lifeline and its doorbell. It costs nothing while nothing happens.
//
// Who decides: on one host whoever comes first. Between hosts the root's guardians; a guardian that has told them waits
// for them, and decides itself if they do not answer; any other rank relies on its host's guardians in the same way.
// The first cause counts. MPI's failure waits a moment for the one it may follow from, and a connection that was closed,
// which means that its rank has died, for those who know how.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "liveness/cause.h"
#include "liveness/how_ended.h"
#include "liveness/lifeline.h"

namespace ringreduce {

struct WatchConfig {
  int rank = 0, local = 0;
  std::vector<int> ranks;            // of this host, by local index
  std::vector<int> pids;             // likewise; empty: unknown
  std::vector<Process> processes;    // by world rank; empty: unknown
  std::vector<int> host_of;          // by world rank
  // Of jobs on several hosts. `guardian`: -1 none, 0 or 1. A doorbell is an abstract Unix socket, which guardians of the
  // host bind with their number behind its name.
  bool several_hosts = false;
  int guardian = -1;
  std::string doorbell;
  std::vector<Lifeline::Link> links;
  double silence_s = 10;
};

class Watch {
 public:
  // `left`: whether the rank at a local index has said goodbye. `tell`: there is a verdict; called on the watch's thread.
  Watch(WatchConfig config, VerdictBoard* board, std::function<bool(int)> left, std::function<void()> tell);
  ~Watch() { stop(); }
  void stop();

  bool decided() const { return board_->verdict.is_there(); }
  Status verdict() const;            // ok: none
  bool lost_process() const;         // the verdict is that a process has ended, or is out of reach
  // This rank cannot go on. Returns the verdict, or the status itself where it does not come; certain ones do not wait.
  Status failed(const Status& status, bool is_certain);

 private:
  struct Known {
    Cause cause;
    int64_t since_ns;
  };
  void open();
  void run();
  bool attend(int64_t wait_ns, std::vector<pollfd>* polled, std::vector<Lifeline::News>* news);
  void say(const Cause& cause);
  int64_t consider();                // what is known by now; when to look again, in ns (-1: when there is news)
  const Known& best() const;
  int64_t decide(const Known& best);
  void publish(const Cause& cause, bool is_own);
  void hear(const Lifeline::News& news);
  void ended(int local);
  void learn(Cause cause);
  void show(const std::string& text);
  void learn_from_board();
  void ring_guardians() const;
  std::string named(int rank) const;
  std::string named_host(int rank) const;

  const WatchConfig config_;
  VerdictBoard* const board_;
  const std::function<bool(int)> left_;
  const std::function<void()> tell_;
  const MemoryKills kills_;
  const Cause no_memory_;            // made while there is some
  std::unique_ptr<Lifeline> lifeline_;
  std::vector<int> pidfds_;          // by local index; -1: none, or known to have ended
  std::vector<Known> known_;
  size_t sent_ = 0;                  // of them, to the parent
  std::vector<bool> heard_;          // by local index: what it has said on the board
  bool passed_on_ = false;           // the verdict
  std::string shown_;                // by this rank, on standard error
  int wake_ = -1;                    // an eventfd
  int doorbell_ = -1;
  std::atomic<bool> stopped_{false};
  std::thread thread_;
};

}  // namespace ringreduce
