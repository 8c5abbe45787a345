// Ranks of a process set that have shut down: saying so, hearing of it, and giving up what cannot
// complete without them.
#include <algorithm>

#include "common/clock.h"
#include "engine/process_set.h"

namespace ringreduce {

namespace {

// A rank that shut down may still be named in decisions on their way: this long (kGoneGraceNs, process_set.h) until
// operations that wait for it fail, and longer for one that is complete on this host and not decided by the others.
constexpr int64_t kUndecidedNs = 1'500'000'000, kFailedUndecidedNs = 150'000'000;
// An operation in execution that makes no progress for this long will not: a rank that shut
// down had no part in the decision.
constexpr int64_t kGoneStallNs = 5'000'000'000;
// How often a rank that waits for a message alone looks for farewells, and how long a message from another host
// may take longer than the news that its sender has shut down, or than the call that asks for it.
constexpr int64_t kGoneLookNs = 50'000'000, kLateMessageNs = 1'500'000'000;
}  // namespace

Status ProcessSet::say_gone(const std::string& why) {
  RR_TRY(withdraw(Code::kShutdown, ": ringreduce was shut down on this rank while it was in flight"));
  bool moved = false;
  RR_TRY(mail_->drain(&moved));  // a peer that has accepted a large message counts on it
  RR_TRY(mail_->withdraw(Code::kShutdown, ": ringreduce was shut down on this rank while it was in flight"));
  farewells_->say(why);
  if (tree_) tree_->gone(channel_.world(topology().rank), why);
  config_.bell->ring();
  return Status::ok();
}

bool ProcessSet::poll_gone(bool* moved) {
  if (tree_ && !agree(moved).is_ok()) return false;
  return !farewells_->ranks().empty();
}

// Those of this host are passed on to the others here; what the tree told itself is known to it.
Status ProcessSet::take_departures(std::vector<Departure>* departures) {
  RR_TRY(departures_->take(departures));
  for (const Departure& departure : *departures)
    if (tree_) tree_->left(departure);
  return Status::ok();
}

Status ProcessSet::take_gone() {
  const std::vector<int> gone = farewells_->ranks();
  if (gone.empty()) return Status::ok();
  if (!gone_since_ns_) gone_since_ns_ = now_ns();
  if (now_ns() - gone_since_ns_ < (farewells_->failed(gone) ? kFailedGraceNs : kGoneGraceNs)) return Status::ok();
  const std::string why = " cannot complete: " + farewells_->text(gone);
  if (machine_ && now_ns() - moved_ns_ > kGoneStallNs) return farewells_->named({Code::kPeerLost, running_[0]->title() + why});
  return withdraw(Code::kPeerLost, why);
}

// Messages that a rank has sent before it left have arrived, or arrive soon.
Status ProcessSet::take_gone_senders(bool* moved) {
  const int64_t now = now_ns();
  if (now - mail_looked_ns_ < kGoneLookNs) return Status::ok();
  mail_looked_ns_ = now;
  const std::vector<int> gone = farewells_->ranks();
  if (gone.empty()) return Status::ok();
  if (gone != mail_gone_) {
    mail_gone_ = gone;
    mail_gone_ns_ = now;
  }
  const int64_t late = topology().host_count() > 1 ? kLateMessageNs : 0;
  if (now - mail_gone_ns_ < late) return Status::ok();
  RR_TRY(mail_->drain(moved));
  return mail_->withdraw(Code::kPeerLost, " cannot complete: " + farewells_->text(gone), &gone, now - late);
}

// Gives up what is not agreed on. What is complete on this host stays for a while: other hosts
// may be about to decide it.
Status ProcessSet::withdraw(Code code, const std::string& why) {
  std::vector<OpRef> pending;
  for (auto& [key, op] : in_flight_)
    if (!op->decided) pending.push_back(op);
  for (const OpRef& op : pending) {
    bool withdrawn = true;
    if (op->posted) RR_TRY(table_.withdraw(op->entry, &withdrawn));
    const int64_t undecided_ns = gone_since_ns_ && farewells_->failed(farewells_->ranks()) ? kFailedUndecidedNs : kUndecidedNs;
    const bool hopeless = gone_since_ns_ && now_ns() - gone_since_ns_ > undecided_ns;
    if (!withdrawn && !hopeless) continue;
    if (op->posted) by_entry_[op->entry] = nullptr;
    deferred_.erase(std::remove(deferred_.begin(), deferred_.end(), op), deferred_.end());
    finish(op, farewells_->named({code, op->title() + why}));
  }
  return Status::ok();
}

}  // namespace ringreduce
