#include "engine/liveness.h"

#include <algorithm>

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/show.h"
#include "shm/peer_memory.h"

namespace ringreduce {

Liveness::Liveness(const std::vector<int>& pids, double timeout_s, std::function<void()> alarm)
    : timeout_ns_(to_ns(timeout_s)), pids_(pids), ended_(pids.size()) {
  for (int pid : pids) fds_.push_back(pid == getpid() ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  watch_ = std::make_unique<DeathWatch>(fds_, std::move(alarm));
}

void Liveness::stop() {
  watch_->stop();
  for (int fd : fds_)
    if (fd >= 0) ::close(fd);
  fds_.clear();
}

Status Liveness::deaths(const ProcessSet& world) {
  watch_->seen();
  for (size_t i = 0; i < fds_.size(); ++i) {
    pollfd peer{fds_[i], POLLIN, 0};
    if (fds_[i] < 0 || ended_[i] || poll(&peer, 1, 0) <= 0) continue;
    ended_[i] = true;
    const std::vector<int> gone = world.farewells().ranks();
    const int rank = world.topology().local_ranks()[i];
    if (std::find(gone.begin(), gone.end(), rank) != gone.end()) continue;  // it said goodbye
    return died(rank, pids_[i]);
  }
  return Status::ok();
}

int64_t Liveness::limit_ns(double timeout_s, int64_t since_ns) const {
  return since_ns + (timeout_s < 0 ? timeout_ns_ : to_ns(timeout_s));
}

Status Liveness::late(const Op& op, int64_t limit_ns, ProcessSet* set) const {
  const int64_t now = now_ns();
  if (now < limit_ns) return Status::ok();
  const std::string missing = set ? set->missing(op).text : "";
  return {Code::kTimeout, op.title() + " has not completed in " + show_seconds(now - op.submitted_ns) + ": " +
                              (missing.empty() ? "all ranks have submitted it, but it does not finish" : missing)};
}

Status Liveness::late(const Message& message, int64_t limit_ns, ProcessSet* set) const {
  const int64_t now = now_ns();
  if (now < limit_ns) return Status::ok();
  return {Code::kTimeout, message.title() + " has not completed in " + show_seconds(now - message.submitted_ns) +
                              (set ? ": " + set->mail().missing(message) : "")};
}

Status Liveness::late(const Plan& plan, int bucket, int64_t since_ns, Status why, ProcessSet* world) {
  if (why.is_ok() && world) why = farewell(plan, *world);
  // All buckets that were in flight at the last time-out have as much time again.
  const int64_t launched = plan.launched_ns(bucket), now = now_ns();
  const int64_t since = launched > bucket_timed_out_ns_ ? launched : std::max(launched, since_ns);
  if (why.is_ok() && now - since < timeout_ns_) return Status::ok();
  if (why.is_ok()) {
    bucket_timed_out_ns_ = now;
    why = {Code::kTimeout, "no progress for " + show_seconds(now - launched)};
  }
  return why.because(plan.title(bucket) + " cannot complete (" + plan.missing(bucket) + ")");
}

// A plan has no messages of its own to say that a rank has shut down; the world's set has.
Status Liveness::farewell(const Plan& plan, ProcessSet& world) const {
  bool moved = false;
  if (!world.poll_gone(&moved) || now_ns() - plan.moved_ns() < kGoneGraceNs) return Status::ok();
  std::vector<int> gone;
  for (int rank : world.farewells().ranks())
    if (plan.includes(rank)) gone.push_back(rank);
  if (!gone.empty()) return {Code::kPeerLost, world.farewells().text(gone)};
  return Status::ok();
}

}  // namespace ringreduce
