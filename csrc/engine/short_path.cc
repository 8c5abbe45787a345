// A small operation from the call to the result, without an Op: the caller posts its data, waits for a moment with the
// engine to itself, and takes the result. Where ranks outnumber cores every call finds its caches cold, so what counts
// is how little memory it touches.
//
// What takes longer, or turns out to be a disagreement, or has a result of another size than expected, becomes an
// operation like any other.
#include <algorithm>

#include "engine/engine.h"

namespace ringreduce {

bool ProcessSet::quiet() const { return topology().host_count() == 1 && in_flight_.empty() && !machine_ && deferred_.empty(); }

Status ProcessSet::post(const PlainCall& call, bool* posted, uint32_t* entry) {
  return post(call, make_key(call, unnamed_), call.in, posted, entry);
}

// Nothing else of this rank is in flight, so the next decision is about this operation.
Status ProcessSet::take(const PlainCall& call, uint32_t entry, bool* done) {
  const Decision* decision = table_.decision(position_);
  *done = decision && decision->entry == entry && decision->verdict == Verdict::kInline;
  if (*done) RR_TRY(take_small(call, entry, done));
  if (!*done) return Status::ok();
  ++position_;
  config_.last->set(*call.kind, call.name, unnamed_, id());
  if (call.name.empty()) ++unnamed_;
  return table_.release(entry);
}

OpRef ProcessSet::adopt(const PlainCall& call, bool posted, uint32_t entry) {
  auto op = std::make_shared<Op>();
  op->submission = call.submission();
  enlist(op);
  op->posted = posted;
  op->entry = entry;
  if (posted) by_entry_[entry] = op;
  else deferred_.push_back(op);
  return op;
}

// With nothing of its own: what of `plain` depends on the set goes to `counts`. False for what must be explained, or
// is no plain call in this set.
bool ProcessSet::complete(PlainCall* plain, int64_t* counts) const {
  const std::vector<int>& world = topology().world;
  if (plain->kind->root != Kind::Root::kNone) {
    const auto at = std::lower_bound(world.begin(), world.end(), plain->root);
    if (at == world.end() || *at != plain->root) return false;
    plain->root = static_cast<int>(at - world.begin());
    if (plain->kind->root == Kind::Root::kTo && plain->root != topology().rank) plain->out = nullptr, plain->room = 0;
  }
  return topology().size <= kMaxLocal && plain->share(counts, topology().size) && validate(*plain, topology().size).is_ok();
}

Status Engine::call(int set_id, PlainCall plain, bool* plain_here, OpRef* op) {
  int64_t counts[kMaxLocal];
  bool at_once = false;
  RR_TRY(call_now(set_id, &plain, counts, plain_here, &at_once, op));
  return at_once || !*plain_here ? Status::ok() : submit(set_id, plain.submission(), false, op);
}

// False in *at_once for what is to be submitted instead: nothing was done.
Status Engine::call_now(int set_id, PlainCall* call, int64_t* counts, bool* plain_here, bool* at_once, OpRef* op) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  status_.submits();
  *plain_here = set->complete(call, counts);
  *at_once = *plain_here && is_small(*call, true) && set->quiet();
  if (!*at_once) return Status::ok();
  const PlainCall& plain = *call;
  bool posted = false, done = false;
  uint32_t entry = 0;
  Status status = set->post(plain, &posted, &entry);
  if (posted && status.is_ok()) {
    driver_.linger([set] { return set->decided(); });
    status = set->take(plain, entry, &done);
  }
  if (!status.is_ok()) return fail(status), status;  // the next one must not meet the peers' this one
  if (!done) *op = set->adopt(plain, posted, entry);
  return Status::ok();
}

}  // namespace ringreduce
