#include "buckets/plan_net.h"

#include <algorithm>
#include <string>

namespace ringreduce {

PlanNet::PlanNet(Net* inner, const std::vector<int>& peers, int first_tag, int last_words_tag, size_t largest)
    : inner_(inner), first_tag_(first_tag), last_words_tag_(last_words_tag), largest_(largest) {
  for (int rank : peers) {
    peers_.emplace_back();
    peers_.back().rank = rank;
  }
}

int PlanNet::index(int rank) const {
  const auto same = [rank](const Peer& peer) { return peer.rank == rank; };
  return static_cast<int>(std::find_if(peers_.begin(), peers_.end(), same) - peers_.begin());
}

Status PlanNet::isend(int to, int tag, const void* data, size_t bytes, Request* request) {
  RR_TRY(inner_->isend(to, tag, data, bytes, request));
  const int peer = index(to), at = tag - first_tag_;
  open_.push_back({*request, true, peer, at, peers_[peer].sent[at]++, {}});
  return Status::ok();
}

Status PlanNet::irecv(int from, int tag, void* data, size_t bytes, Request* request) {
  RR_TRY(inner_->irecv(from, tag, data, bytes, request));
  const int peer = index(from), at = tag - first_tag_;
  open_.push_back({*request, false, peer, at, peers_[peer].posted[at]++, {}});
  return Status::ok();
}

Status PlanNet::test(Request* request, bool* done) {
  const Request before = *request;
  const Status status = inner_->test(request, done);
  if (before.active() && *done) close(before);
  return status;
}

void PlanNet::cancel(Request* request) {
  close(*request);
  inner_->cancel(request);
}

void PlanNet::close(const Request& request) {
  const auto same = [&request](const Open& open) { return open.request.id == request.id; };
  open_.erase(std::remove_if(open_.begin(), open_.end(), same), open_.end());
}

Status PlanNet::leave() {
  left_ = true;
  for (Peer& peer : peers_) {
    awaited_ += 2;
    RR_TRY(inner_->irecv(peer.rank, last_words_tag_, peer.theirs, sizeof peer.theirs, &peer.last_receive));
    RR_TRY(inner_->isend(peer.rank, last_words_tag_, peer.sent, sizeof peer.sent, &peer.last_send));
  }
  return Status::ok();
}

Status PlanNet::drain(bool* moved) {
  for (Peer& peer : peers_) RR_TRY(drain(peer, moved));
  for (size_t i = 0; i < open_.size();) {
    bool over = false;
    RR_TRY(inner_->test(&open_[i].request, &over));
    *moved = *moved || over;
    if (over) open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(i));
    else ++i;
  }
  return Status::ok();
}

Status PlanNet::drain(Peer& peer, bool* moved) {
  for (Request* request : {&peer.last_send, &peer.last_receive}) {
    if (!request->active()) continue;
    bool over = false;
    RR_TRY(inner_->test(request, &over));
    if (!over) continue;
    *moved = true;
    --awaited_;
    if (request == &peer.last_receive) RR_TRY(take_rest(peer));
  }
  return Status::ok();
}

// Receives as many messages as the peer has sent, no more and no less.
Status PlanNet::take_rest(Peer& peer) {
  const int at = static_cast<int>(&peer - peers_.data());
  for (int tag = 0; tag < kTags; ++tag) {
    const uint32_t sent = peer.theirs[tag], posted = peer.posted[tag];
    if (sent > posted && sent - posted > kMostAhead)
      return {Code::kPeerLost, "rank " + std::to_string(peer.rank) + " has left a gradient plan, and says that it has sent " +
                                   std::to_string(sent) + " messages where this rank has asked for " + std::to_string(posted)};
    for (uint32_t number = posted; number < sent; ++number) {
      open_.push_back({{}, false, at, tag, number, std::vector<char>(largest_)});
      RR_TRY(inner_->irecv(peer.rank, first_tag_ + tag, open_.back().stray.data(), largest_, &open_.back().request));
    }
    for (Open& open : open_)
      if (!open.send && open.peer == at && open.tag == tag && open.number >= sent) inner_->cancel(&open.request);
  }
  const auto taken_back = [](const Open& open) { return !open.request.active(); };
  open_.erase(std::remove_if(open_.begin(), open_.end(), taken_back), open_.end());
  return Status::ok();
}

void PlanNet::give_up() {
  for (Open& open : open_)
    if (!open.send) inner_->cancel(&open.request);
  for (Peer& peer : peers_)
    if (peer.last_receive.active()) inner_->cancel(&peer.last_receive);
  const auto taken_back = [](const Open& open) { return !open.request.active(); };
  open_.erase(std::remove_if(open_.begin(), open_.end(), taken_back), open_.end());
}

}  // namespace ringreduce
