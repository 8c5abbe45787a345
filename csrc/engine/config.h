// What an engine is made from.
#pragma once

#include <memory>
#include <vector>

#include "common/settings.h"
#include "liveness/watch.h"
#include "net/net.h"
#include "shm/segment.h"

namespace ringreduce {

struct EngineConfig {
  int rank = 0, size = 1;
  std::vector<int> host_of;          // world rank -> host
  std::shared_ptr<Segment> segment;  // the world's, of this host
  std::unique_ptr<Net> net;          // null on one host
  bool oversubscribed = false;       // more ranks than cores: never spin
  bool spare_cores = false;          // a core is free for the background thread
  std::vector<int> peer_pids;        // by local index; empty: unknown
  std::vector<Process> processes;    // by world rank, for texts; empty: unknown
  int guardian = -1;                 // the rest is of jobs on several hosts: liveness/watch.h
  std::string doorbell;
  std::vector<Lifeline::Link> links;
  bool single_copy = false;          // the ranks of the host can read each other's memory
  Settings settings;
};

}  // namespace ringreduce
