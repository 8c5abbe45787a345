#include "gpu/rendezvous.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "common/log.h"

namespace ringreduce {

void Rendezvous::gather(const void* data, size_t bytes) {
  output_ = Output();
  expected_ = bytes;
  exchange_ = std::make_unique<Allgather>(set_->channel, static_cast<const char*>(data), bytes, &output_);
}

template <typename T>
std::vector<T> Rendezvous::gathered() const {
  std::vector<T> all(output_.bytes / sizeof(T));
  std::memcpy(all.data(), output_.data.get(), all.size() * sizeof(T));
  return all;
}

Status Rendezvous::begin() {
  const Topology& topology = *set_->channel->topology;
  RR_TRY(make_info(*set_->device, topology.host(), topology.rank == 0 && topology.size > 1, &mine_));
  gather(&mine_, sizeof mine_);
  step_ = Step::kInfos;
  return Status::ok();
}

void Rendezvous::choose() {
  const Topology& topology = *set_->channel->topology;
  const std::vector<GpuInfo> infos = gathered<GpuInfo>();
  std::string why;
  set_->path = choose_path(infos, topology.world, &why);
  if (set_->path == GpuPath::kHost) return use_host(why);
  const Status status = Communicator::start(set_->device, infos, topology, &set_->communicator);
  if (!status.is_ok()) return outcome(status);
  step_ = Step::kStarting;
}

void Rendezvous::outcome(const Status& status) {
  my_outcome_.answer = status.is_ok() ? kMade : status.code() == Code::kTimeout ? kNoAnswer : kRefused;
  std::snprintf(my_outcome_.error, sizeof my_outcome_.error, "%s", status.text().c_str());
  gather(&my_outcome_, sizeof my_outcome_);
  step_ = Step::kOutcomes;
}

void Rendezvous::conclude() {
  const std::vector<Outcome> outcomes = gathered<Outcome>();
  // What went wrong on one rank is why the others have waited in vain: the worst answer says it.
  const auto worst = std::max_element(outcomes.begin(), outcomes.end(),
                                      [](const Outcome& a, const Outcome& b) { return a.answer < b.answer; });
  step_ = Step::kDone;
  if (worst->answer == kMade) return;
  const int rank = set_->channel->world(static_cast<int>(worst - outcomes.begin()));
  use_host("on rank " + std::to_string(rank) + " " + worst->error);
}

// One warning a set, from the rank that comes first.
void Rendezvous::use_host(const std::string& why) {
  set_->path = GpuPath::kHost;
  set_->why_host = why;
  if (set_->communicator) set_->communicator->abort();
  set_->communicator.reset();
  if (set_->channel->topology->rank == 0)
    log(kWarning, "operations on GPU tensors go through host memory, which is slow: " + why);
  step_ = Step::kDone;
}

Status Rendezvous::advance(bool* moved) {
  if (exchange_) {
    RR_TRY(exchange_->advance(moved));
    if (!exchange_->done()) return Status::ok();
    exchange_.reset();
    for (size_t rank = 0; rank < output_.counts.size(); ++rank)
      if (output_.counts[rank] != static_cast<int64_t>(expected_))
        return {Code::kPeerLost, "rank " + std::to_string(set_->channel->world(static_cast<int>(rank))) + " has sent " +
                                     std::to_string(output_.counts[rank]) + " bytes about its GPU, not " + std::to_string(expected_)};
  }
  switch (step_) {
    case Step::kBegin: *moved = true; return begin();
    case Step::kInfos: *moved = true; choose(); break;
    case Step::kStarting: {
      bool settled = false;
      Status status = set_->communicator->settled(&settled);
      if (status.is_ok() && !settled) status = set_->communicator->late(set_->patience_ns);
      if (status.is_ok() && !settled) return Status::ok();
      *moved = true;
      outcome(status);
      break;
    }
    case Step::kOutcomes: *moved = true; conclude(); break;
    case Step::kDone: break;
  }
  if (step_ == Step::kDone && !set_->communicator) return Communicator::without_nccl(set_->device, &set_->communicator);
  return Status::ok();
}

std::string Rendezvous::where() const {
  switch (step_) {
    case Step::kStarting: return "waiting for NCCL to make a communicator";
    case Step::kOutcomes: return "comparing what NCCL answered";
    default: return "exchanging what GPUs and NCCL there are";
  }
}

}  // namespace ringreduce
