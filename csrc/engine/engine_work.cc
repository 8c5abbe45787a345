// What the engine's parts have to do, in one pass over them (driver.h), and what becomes of a failure.
#include "common/clock.h"
#include "engine/engine.h"

namespace ringreduce {

constexpr int64_t kListenNs = 1'000'000;

bool Engine::advance() {
  bool moved = false;
  try {
    const Status status = advance_all(&moved);
    if (!status.is_ok()) fail(status);
  } catch (const std::exception& error) {
    broke(error);
  }
  return moved;
}

Status Engine::advance_all(bool* moved) {
  RR_TRY(hear());
  RR_TRY(sets_.advance(moved));
  return plans_.advance(moved);
}

Status Engine::hear() {
  bool news = false;
  RR_TRY(plans_.hear(&news));
  if (news) driver_.rouse();  // there may be hosts to tell
  return Status::ok();
}

// Nothing rings for messages between hosts, nor when the GPU or NCCL get on.
bool Engine::polled() const {
  if (!config_.net && !gpu_.device()) return false;
  return sets_.on_net() || plans_.polled();
}

bool Engine::flush() { return config_.net && !broken() && config_.net->flush(); }

// Buckets on one host are worked off in the hooks and at the end of backward: a background
// thread would only take the core from the computation, unless there are cores to spare.
bool Engine::unattended() const {
  return sets_.busy() || plans_.unattended(config_.net || config_.spare_cores, to_ns(config_.settings.timeout_s));
}

// News of other hosts come to the leaders. Whoever computes need not know.
bool Engine::listening() const {
  return config_.net && sets_.leads_hosts() && (bucket_waiters_ || plans_.busy());
}

void Engine::listen() {
  if (broken() || now_ns() - listened_ns_ < kListenNs) return;
  listened_ns_ = now_ns();
  Status status = sets_.listen();
  if (status.is_ok()) status = hear();
  if (!status.is_ok()) fail(status);
}

void Engine::look() {
  const Status status = liveness_.verdict();
  if (!status.is_ok()) end_with(status);
  check_gpu();
  const int64_t now = now_ns(), warn_ns = to_ns(config_.settings.stall_warning_s);
  sets_.each([&](ProcessSet& set) { set.warn_of_stalls(now, warn_ns); });
}

void Engine::check_gpu() {
  const Status status = broken() ? Status::ok() : gpu_.check();
  if (!status.is_ok()) fail(status);
}

// What this rank fails of may follow from another's death, of which news come in a moment: all ranks raise the same.
void Engine::fail(const Status& status, bool is_certain) {
  if (broken() || status.code() == Code::kShutdown) return end_with(status);
  try {
    end_with(liveness_.failed(status, is_certain));
  } catch (const std::exception&) {
    end_with(status);
  }
}

void Engine::end_with(const Status& status) {
  if (broken()) return;
  broken_ = status;
  lost_transfers_ = config_.net && !closing_;
  if (!closing_) status_.state(RankState::kFailed, status);
  try {
    gpu_.abort(status.code() == Code::kShutdown);
  } catch (const std::exception&) {
    // There is no memory for it: what is on the GPU stays there.
  }
  sets_.each([&status](ProcessSet& set) { set.fail(status); });
  bell_->ring();
}

}  // namespace ringreduce
