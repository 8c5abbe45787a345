// A whole job in one process: every rank is a thread with an engine of its own, hosts share
// plain memory, and messages between hosts go through the loopback net.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "collectives/kinds.h"
#include "common/clock.h"
#include "counting_net.h"
#include "engine/engine.h"
#include "fault_net.h"
#include "loopback_net.h"

namespace ringreduce {

struct WorldOptions {
  std::vector<int> host_of;          // one entry a rank
  size_t chunk_bytes = 4096;
  size_t fusion_bytes = 16 << 10;
  int tree_arity = 2;
  bool single_copy = false;          // where ranks share a host they read each other's memory, of any size
  bool oversubscribed = true;
  double timeout_s = check::patience_s();
  LoopbackOptions net;
  std::vector<Traffic>* traffic = nullptr;  // one entry a rank: counts its messages
  int slow_rank = -1;                // whose messages come late
  std::map<int, std::vector<Fault>> faults;  // by rank
};

// A net on which nothing arrives sooner than 0.1 s after it is waited for.
class SlowNet : public Net {
 public:
  explicit SlowNet(std::unique_ptr<Net> inner) : inner_(std::move(inner)) {}
  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override {
    return inner_->isend(to, tag, data, bytes, request);
  }
  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override {
    RR_TRY(inner_->irecv(from, tag, data, bytes, request));
    not_before_[request->id] = now_ns() + 100'000'000;
    return Status::ok();
  }
  Status test(Request* request, bool* done) override {
    const auto at = not_before_.find(request->id);
    *done = false;
    if (at != not_before_.end() && now_ns() < at->second) return Status::ok();
    return inner_->test(request, done);
  }
  void cancel(Request* request) override { inner_->cancel(request); }

 private:
  std::unique_ptr<Net> inner_;
  std::map<int64_t, int64_t> not_before_;  // by request
};

class World {
 public:
  explicit World(WorldOptions options) : options_(std::move(options)), net_(size(), options_.net) {}

  int size() const { return static_cast<int>(options_.host_of.size()); }
  int hosts() const {
    int most = 0;
    for (int host : options_.host_of) most = std::max(most, host);
    return most + 1;
  }

  // The memory that the ranks of a host share under `name`; created by whoever asks first.
  std::shared_ptr<Segment> segment(const std::string& name, int host, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& segment = segments_[name + "@" + std::to_string(host)];
    if (!segment) segment = Segment::in_process(bytes);
    return segment;
  }
  std::shared_ptr<Segment> set_segment(const std::string& name, int rank, const std::vector<int>& members) {
    int locals = 0;
    for (int member : members) locals += options_.host_of[member] == options_.host_of[rank];
    return segment(name, options_.host_of[rank], ProcessSet::segment_bytes(locals, options_.chunk_bytes));
  }

  const std::vector<int>& host_of() const { return options_.host_of; }

  std::unique_ptr<Engine> engine(int rank) {
    std::vector<int> all(size());
    for (int i = 0; i < size(); ++i) all[i] = i;
    EngineConfig config;
    config.rank = rank;
    config.size = size();
    config.host_of = options_.host_of;
    config.segment = set_segment("world", rank, all);
    if (hosts() > 1) config.net = net_.net(rank);
    if (config.net && options_.traffic)
      config.net = std::make_unique<CountingNet>(std::move(config.net), &(*options_.traffic)[rank]);
    if (config.net && rank == options_.slow_rank) config.net = std::make_unique<SlowNet>(std::move(config.net));
    if (config.net && options_.faults.count(rank))
      config.net = std::make_unique<FaultNet>(std::move(config.net), options_.faults[rank]);
    config.oversubscribed = options_.oversubscribed;
    config.single_copy = options_.single_copy;
    if (options_.single_copy) {
      config.peer_pids.assign(std::count(host_of().begin(), host_of().end(), host_of()[rank]), getpid());
      config.settings.single_copy = "always";
    }
    config.settings.chunk_bytes = options_.chunk_bytes;
    config.settings.fusion_bytes = options_.fusion_bytes;
    config.settings.tree_arity = options_.tree_arity;
    config.settings.timeout_s = options_.timeout_s;
    return std::make_unique<Engine>(std::move(config));
  }

  // Waits for all ranks, by the means of the test alone: no message is sent.
  void meet() {
    std::unique_lock<std::mutex> lock(mutex_);
    const int round = arrived_++ / size();
    met_.notify_all();
    met_.wait(lock, [&] { return arrived_ >= (round + 1) * size(); });
  }

  // Runs body(rank, engine) on every rank at once.
  template <typename Body>
  void run(Body body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank)
      threads.emplace_back([this, rank, &body] {
        std::unique_ptr<Engine> mine = engine(rank);
        body(rank, *mine);
        mine->close(std::min(10.0, options_.timeout_s));
      });
    for (std::thread& thread : threads) thread.join();
  }

 private:
  WorldOptions options_;
  LoopbackWorld net_;
  std::mutex mutex_;
  std::condition_variable met_;
  int arrived_ = 0;  // at meet()
  std::map<std::string, std::shared_ptr<Segment>> segments_;
};

inline Status wait_for(Engine& engine, const OpRef& op) {
  for (bool done = false; !done;) {
    const Status status = engine.wait(*op, check::patience_s(), 1, &done);
    if (status.code() == Code::kTimeout) std::fprintf(stderr, "%s\n", engine.state().c_str());
    RR_TRY(status);
  }
  return op->status;
}

inline Submission barrier() {
  Submission s;
  s.kind = &kBarrier;
  return s;
}

template <typename T>
Submission allreduce_of(const std::string& name, const std::vector<T>& in, std::vector<T>* out, DType dtype, int op = kOpSum) {
  Submission s;
  s.kind = find_kind("allreduce");
  s.dtype = dtype;
  s.op = op;
  s.name = name;
  s.pieces = {{reinterpret_cast<const char*>(in.data()), reinterpret_cast<char*>(out->data()), in.size() * sizeof(T)}};
  s.shape = {static_cast<int64_t>(in.size())};
  return s;
}

}  // namespace ringreduce
