// A small allreduce from the call to the result, without an Op: the caller posts its numbers, waits
// for a moment with the engine to itself, and reads the sum. Where ranks outnumber cores every call
// finds its caches cold, so what counts is how little memory it touches.
//
// What takes longer, or turns out to be a disagreement, becomes an operation like any other.
#include "collectives/kinds.h"
#include "engine/engine.h"

namespace ringreduce {

bool ProcessSet::quiet() const { return topology().host_count() == 1 && in_flight_.empty() && !machine_ && deferred_.empty(); }

Status ProcessSet::post(const PlainAllreduce& plain, bool* posted, uint32_t* entry) {
  Post post;
  post.key = unnamed_key(unnamed_);
  post.signature = signature(kAllreduce, plain);
  post.bytes = post.inline_bytes = plain.bytes;
  post.inlined = post.reduced = true;
  post.inline_data = plain.data;
  post.slot_bytes = round_up(plain.bytes, kLine);
  post.dtype = plain.dtype;
  post.reduction = plain.reduction();
  post.scale = plain.scale(topology().size);
  return table_.post(post, false, posted, entry);
}

// Nothing else of this rank is in flight, so the next decision is about this operation.
Status ProcessSet::take_inline(const PlainAllreduce& plain, uint32_t entry, bool* done) {
  const Decision* decision = table_.decision(position_);
  *done = decision && decision->entry == entry && decision->verdict == Verdict::kInline;
  if (!*done) return Status::ok();
  copy(plain.data, table_.result(entry), plain.bytes);
  ++position_;
  ++unnamed_;
  return table_.release(entry);
}

OpRef ProcessSet::adopt(const PlainAllreduce& plain, bool posted, uint32_t entry) {
  auto op = std::make_shared<Op>();
  op->submission = plain.submission(kAllreduce);
  enlist(op);
  op->posted = posted;
  op->entry = entry;
  if (posted) by_entry_[entry] = op;
  else deferred_.push_back(op);
  return op;
}

Status Engine::allreduce(int set_id, const PlainAllreduce& plain, OpRef* op) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (plain.bytes > kInlineBytes || !set->quiet()) {
    lock.unlock();
    return submit(set_id, plain.submission(kAllreduce), false, op);
  }
  bool posted = false, done = false;
  uint32_t entry = 0;
  Status status = set->post(plain, &posted, &entry);
  if (posted && status.is_ok()) {
    driver_.linger([set] { return set->decided(); });
    status = set->take_inline(plain, entry, &done);
  }
  if (!status.is_ok()) return fail(status), status;  // the next one must not meet the peers' this one
  if (!done) *op = set->adopt(plain, posted, entry);
  return Status::ok();
}

}  // namespace ringreduce
