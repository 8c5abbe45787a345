// Messages from rank to rank, as the engine sees them: calls of one rank that wait for another.
#include <algorithm>

#include "common/clock.h"
#include "common/show.h"
#include "engine/engine.h"

namespace ringreduce {

Status Engine::post(int set_id, MessageSpec spec, bool wake, MessageRef* message) {
  auto made = std::make_shared<Message>();
  static_cast<MessageSpec&>(*made) = std::move(spec);
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  RR_TRY(set->mail().enlist(made));
  if (const Status status = set->mail().post(made); !status.is_ok()) return fail(status), status;
  *message = std::move(made);
  if (drivers_ && set->net()) bell_->ring();  // asleep for longer, perhaps, than the new message should wait
  // What was handed over may still have to leave, though nobody waits for it.
  if (!drivers_ && (wake || (*message)->is_done()) && background_work()) wake_.notify_one();
  return Status::ok();
}

Status Engine::wait(const Message& message, double timeout_s, double slice_s, bool* done, int64_t since_ns) {
  Lock lock(mutex_);
  if (!since_ns) since_ns = message.limit_since_ns;
  const int64_t limit = since_ns + to_ns(timeout_s < 0 ? config_.settings.timeout_s : timeout_s);
  if (timeout_s >= 0) slice_s = std::clamp((limit - now_ns()) * 1e-9, 0.0, slice_s);
  if (!message.is_done()) (void)wait_until(lock, [&message] { return message.is_done(); }, slice_s);
  *done = message.is_done();
  if (*done) return message.status;
  if (!broken_.is_ok()) return broken_;
  if (now_ns() < limit) return Status::ok();
  const auto set = sets_.find(message.set_id);
  return {Code::kTimeout, message.title() + " has not completed in " + show_seconds(now_ns() - message.submitted_ns) +
                              (set == sets_.end() ? "" : ": " + set->second->mail().missing(message))};
}

void Engine::keep(const MessageRef& message, std::shared_ptr<void> memory) {
  Lock lock(mutex_);
  if (!message->is_done()) message->keep = std::move(memory);
}

Mailboxes::Counts Engine::message_counts(int set_id) {
  Lock lock(mutex_);
  const auto at = sets_.find(set_id);
  return at == sets_.end() ? Mailboxes::Counts() : at->second->mail().counts();
}

}  // namespace ringreduce
