// Messages from rank to rank, as the engine sees them: calls of one rank that wait for another.
#include <algorithm>

#include "common/clock.h"
#include "engine/engine.h"

namespace ringreduce {

Status Engine::post(int set_id, MessageSpec spec, bool wake, MessageRef* message) {
  auto made = std::make_shared<Message>();
  static_cast<MessageSpec&>(*made) = std::move(spec);
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  RR_TRY(set->mail().enlist(made));
  *message = made;
  status_.submits();
  if (const Status status = set->mail().post(made); !status.is_ok()) return fail(status), status;
  if (driver_.driven() && set->net()) bell_->ring();  // asleep for longer, perhaps, than the new message should wait
  // What was handed over may still have to leave, though nobody waits for it.
  if ((wake && !(*message)->is_done()) || set->sending()) driver_.wake();
  return Status::ok();
}

Missing Engine::missing(const Message& message) {
  Lock lock(mutex_);
  Missing missing;
  ProcessSet* set = closed_ ? nullptr : sets_.find(message.set_id);
  if (!set || message.is_done()) return missing;
  missing.text = set->mail().missing(message);
  if (message.peer >= 0) missing.ranks = {message.peer};
  return missing;
}

static WaitRecord record_of(const Message& message) {
  WaitRecord wait;
  wait.what = WaitRecord::What::kMessage;
  wait.set = message.set_id;
  wait.since_ns = message.submitted_ns;
  wait.title.set(message.title());
  return wait;
}

Status Engine::wait(const Message& message, double timeout_s, double slice_s, bool* done, int64_t since_ns, Waiting* waiting) {
  Lock lock(mutex_);
  const int64_t limit = liveness_.limit_ns(timeout_s, since_ns ? since_ns : message.limit_since_ns.load());
  if (timeout_s >= 0) slice_s = std::clamp((limit - now_ns()) * 1e-9, 0.0, slice_s);
  message.awaited = waiting && waiting->reports();
  if (!message.is_done()) block(lock, [&message] { return message.is_done(); }, slice_s, waiting, [&] { return record_of(message); });
  *done = message.is_done();
  if (*done) return message.status;
  return broken() ? broken_ : liveness_.late(message, limit, sets_.find(message.set_id));
}

void Engine::keep(const MessageRef& message, std::shared_ptr<void> memory) {
  Lock lock(mutex_);
  if (!message->is_done() || message->transfer.active()) message->keep = std::move(memory);
}

bool Engine::take_back(const MessageRef& message) {
  Lock lock(mutex_);
  ProcessSet* set = sets_.find(message->set_id);
  return set && set->mail().take_back(message);
}

Mailboxes::Counts Engine::message_counts(int set_id) {
  Lock lock(mutex_);
  ProcessSet* set = sets_.find(set_id);
  return set ? set->mail().counts() : Mailboxes::Counts();
}

}  // namespace ringreduce
