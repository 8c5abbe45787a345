// LoopbackWorld's matching and delivery. One mutex guards everything; what a rank has matched
// is delivered whenever that rank tests anything, as MPI progresses in any call.
#include "loopback_net.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

namespace ringreduce {
namespace {

using ChannelKey = std::tuple<int, int, int>;  // from, to, tag

struct Transfer {
  int owner;
  bool is_send;
  ChannelKey channel;
  const void* source;  // of a send
  void* target;        // of a receive
  size_t bytes;
  int64_t peer = -1;   // the transfer at the other end, once matched
  int delay = 0;       // calls of test() still to let pass
  bool over = false;   // delivered, or failed
  Status failure = {};
};

struct Channel {
  // Not yet matched; at most one of the two has entries.
  std::deque<int64_t> sends, receives;
  uint64_t matched = 0;
};

uint64_t mix(uint64_t value) {  // a bijection that scatters neighbouring values
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

}  // namespace

struct LoopbackWorld::State {
  State(int size_, LoopbackOptions options_) : size(size_), options(options_), incoming(static_cast<size_t>(size_)) {}

  const int size;
  const LoopbackOptions options;

  std::mutex mutex;  // guards all below
  int64_t next_id = 0;
  std::map<int64_t, Transfer> transfers;  // by request id; ids are never used twice
  std::map<ChannelKey, Channel> channels;
  std::vector<std::vector<int64_t>> incoming;  // by rank: its matched, undelivered receives

  int64_t start(const Transfer& transfer) {
    const int64_t id = next_id++;
    transfers.emplace(id, transfer);
    Channel& channel = channels[transfer.channel];
    auto& mine = transfer.is_send ? channel.sends : channel.receives;
    auto& theirs = transfer.is_send ? channel.receives : channel.sends;
    if (theirs.empty()) {
      mine.push_back(id);
    } else {
      const int64_t other = theirs.front();
      theirs.pop_front();
      match(transfer.is_send ? id : other, transfer.is_send ? other : id, channel.matched++);
    }
    return id;
  }

  void match(int64_t send_id, int64_t receive_id, uint64_t place) {
    Transfer& send = transfers.at(send_id);
    Transfer& receive = transfers.at(receive_id);
    send.peer = receive_id;
    receive.peer = send_id;
    receive.delay = delay_of(receive.channel, 2 * place);
    send.delay = delay_of(send.channel, 2 * place + 1);
    incoming[static_cast<size_t>(receive.owner)].push_back(receive_id);
  }

  int delay_of(const ChannelKey& channel, uint64_t place) const {
    const auto [from, to, tag] = channel;
    uint64_t hash = options.seed;
    for (uint64_t part : {static_cast<uint64_t>(from), static_cast<uint64_t>(to), static_cast<uint64_t>(tag), place}) {
      hash = mix(hash ^ part);
    }
    const double dice = static_cast<double>(hash >> 11) / 9007199254740992.0;  // 2^53
    return dice < options.delay_probability ? 1 + static_cast<int>(mix(hash) % 16) : 0;
  }

  void deliver(Transfer& receive) {
    const auto found = transfers.find(receive.peer);
    if (found == transfers.end() || found->second.over) return;
    Transfer& send = found->second;
    if (send.bytes > receive.bytes) {
      const auto [from, to, tag] = receive.channel;
      receive.failure = Status(
          Code::kSystem, "rank " + std::to_string(to) + " has a buffer of " + std::to_string(receive.bytes) +
                             " bytes for a message of " + std::to_string(send.bytes) + " bytes from rank " +
                             std::to_string(from) + ", tag " + std::to_string(tag));
    } else if (send.bytes > 0) {
      std::memcpy(receive.target, send.source, send.bytes);
    }
    send.over = receive.over = true;
  }

  void progress(int rank) {
    auto& ids = incoming[static_cast<size_t>(rank)];
    size_t kept = 0;
    for (const int64_t id : ids) {
      const auto found = transfers.find(id);
      if (found == transfers.end() || found->second.over) continue;  // cancelled
      if (found->second.delay-- > 0) ids[kept++] = id;
      else deliver(found->second);
    }
    ids.resize(kept);
  }

  // Gives a transfer up: one that is matched completes at once, any other is withdrawn.
  void cancel(int64_t id) {
    Transfer& transfer = transfers.at(id);
    const auto receive = transfer.is_send ? transfers.find(transfer.peer) : transfers.find(id);
    if (receive != transfers.end() && !transfer.over) deliver(receive->second);
    forget(id);
  }

  // Removes a transfer without touching its buffer.
  void forget(int64_t id) {
    Transfer& transfer = transfers.at(id);
    Channel& channel = channels[transfer.channel];
    auto& waiting = transfer.is_send ? channel.sends : channel.receives;
    const auto position = std::find(waiting.begin(), waiting.end(), id);
    if (position != waiting.end()) waiting.erase(position);
    transfers.erase(id);
  }
};

class LoopbackNet final : public Net {
 public:
  LoopbackNet(std::shared_ptr<LoopbackWorld::State> state, int rank) : state_(std::move(state)), rank_(rank) {}

  ~LoopbackNet() override {
    std::lock_guard<std::mutex> lock(state_->mutex);
    std::vector<int64_t> mine;
    for (const auto& [id, transfer] : state_->transfers) {
      if (transfer.owner == rank_) mine.push_back(id);
    }
    for (const int64_t id : mine) state_->forget(id);
  }

  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override {
    return start({rank_, true, {rank_, to, tag}, data, nullptr, bytes}, to, tag, request);
  }

  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override {
    return start({rank_, false, {from, rank_, tag}, nullptr, data, bytes}, from, tag, request);
  }

  Status test(Request* request, bool* done) override {
    *done = !request->active();
    if (*done) return Status::ok();
    std::lock_guard<std::mutex> lock(state_->mutex);
    const auto found = state_->transfers.find(request->id);
    if (found == state_->transfers.end() || found->second.owner != rank_) {
      return Status(Code::kInvalid, "rank " + std::to_string(rank_) + " tests request " + std::to_string(request->id) +
                                        ", which it does not have in flight");
    }
    state_->progress(rank_);
    Transfer& transfer = found->second;
    if (!transfer.over || (transfer.is_send && transfer.delay-- > 0)) return Status::ok();
    Status result = transfer.failure;
    state_->transfers.erase(found);
    *request = Request{};
    *done = true;
    return result;
  }

  void cancel(Request* request) override {
    if (!request->active()) return;
    std::lock_guard<std::mutex> lock(state_->mutex);
    const auto found = state_->transfers.find(request->id);
    if (found != state_->transfers.end() && found->second.owner == rank_) state_->cancel(request->id);
    *request = Request{};
  }

 private:
  Status start(const Transfer& transfer, int peer, int tag, Request* request) {
    if (peer < 0 || peer >= state_->size || tag < 0 || tag > kMaxTag) {
      return Status(Code::kInvalid, "rank " + std::to_string(peer) + ", tag " + std::to_string(tag) +
                                        " is no address in a world of " + std::to_string(state_->size) + " ranks");
    }
    std::lock_guard<std::mutex> lock(state_->mutex);
    request->id = state_->start(transfer);
    return Status::ok();
  }

  const std::shared_ptr<LoopbackWorld::State> state_;
  const int rank_;
};

LoopbackWorld::LoopbackWorld(int size, LoopbackOptions options) : state_(std::make_shared<State>(size, options)) {}

std::unique_ptr<Net> LoopbackWorld::net(int rank) { return std::make_unique<LoopbackNet>(state_, rank); }

}  // namespace ringreduce
