#include "engine/liveness.h"

#include <algorithm>

#include "common/clock.h"
#include "common/show.h"

namespace ringreduce {

static WatchConfig watch_config(const EngineConfig& config, const Topology& world) {
  WatchConfig watch;
  watch.rank = config.rank;
  watch.local = world.local();
  watch.ranks = world.local_ranks();
  watch.pids = config.peer_pids;
  watch.processes = config.processes;
  watch.host_of = config.host_of;
  watch.several_hosts = !config.doorbell.empty();
  watch.guardian = config.guardian;
  watch.doorbell = config.doorbell;
  watch.links = config.links;
  watch.silence_s = config.settings.host_timeout_s;
  return watch;
}

Liveness::Liveness(const EngineConfig& config, const ProcessSet& world, std::function<void()> alarm)
    : timeout_ns_(to_ns(config.settings.timeout_s)),
      watch_(watch_config(config, world.topology()), world.verdict_board(),
             [&world](int local) { return world.farewells().left_here(local); }, std::move(alarm)) {}

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
  if (!world.poll_gone(&moved) || now_ns() - plan.moved_ns() < (world.farewells().failed(world.farewells().ranks()) ? kFailedGraceNs : kGoneGraceNs)) return Status::ok();
  std::vector<int> gone;
  for (int rank : world.farewells().ranks())
    if (plan.includes(rank)) gone.push_back(rank);
  if (!gone.empty()) return world.farewells().named({Code::kPeerLost, world.farewells().text(gone)});
  return Status::ok();
}

}  // namespace ringreduce
