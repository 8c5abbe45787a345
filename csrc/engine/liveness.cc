#include "engine/liveness.h"

#include <algorithm>

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/show.h"
#include "shm/peer_memory.h"

namespace ringreduce {

Liveness::Liveness(const std::vector<int>& pids, double timeout_s) : timeout_ns_(to_ns(timeout_s)), pids_(pids) {
  for (int pid : pids) fds_.push_back(pid == getpid() ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
}

void Liveness::stop() {
  for (int fd : fds_)
    if (fd >= 0) ::close(fd);
  fds_.clear();
}

Status Liveness::deaths(const ProcessSet& world) {
  for (size_t i = 0; i < fds_.size(); ++i) {
    pollfd peer{fds_[i], POLLIN, 0};
    if (fds_[i] < 0 || poll(&peer, 1, 0) <= 0) continue;
    ::close(fds_[i]);
    fds_[i] = -1;
    const std::vector<int> gone = world.gone_ranks();
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
  const std::string missing = set ? set->missing(op) : "";
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
  return why.because("gradient bucket " + std::to_string(bucket) + " cannot complete (" + plan.missing(bucket) + ")");
}

// A plan has no messages of its own to say that a rank has shut down; the world's set has.
Status Liveness::farewell(const Plan& plan, ProcessSet& world) const {
  bool moved = false;
  if (!world.poll_gone(&moved) || now_ns() - plan.moved_ns() < kGoneGraceNs) return Status::ok();
  for (int rank : world.gone_ranks())
    if (plan.includes(rank)) return {Code::kPeerLost, "rank " + std::to_string(rank) + " has shut down"};
  return Status::ok();
}

}  // namespace ringreduce
