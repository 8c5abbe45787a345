// How an operation of a process set is posted, and what a rank takes of one that was over with that (ops/small.h).
#include <algorithm>
#include <cstring>

#include "common/hash.h"
#include "engine/process_set.h"

namespace ringreduce {

namespace {

// Fusing larger operations gains nothing: they fill several chunks by themselves.
constexpr size_t kFuseBytes = 1 << 20;

uint64_t fuse_with(const Call& call) {
  Hasher fuse;
  fuse.add(static_cast<uint64_t>(call.dtype)).add(call.op).add(call.on_gpu);
  fuse.add_bytes(&call.prescale, sizeof call.prescale).add_bytes(&call.postscale, sizeof call.postscale);
  return fuse.value() | 1;
}

}  // namespace

Status ProcessSet::post(const Call& call, const Key& key, const void* data, bool* posted, uint32_t* entry) {
  const bool one_host = topology().host_count() == 1;
  const int64_t size = static_cast<int64_t>(call.bytes);
  Post post;
  post.key = key;
  post.signature = signature(call);
  post.bytes = call.bytes;
  post.inlined = is_small(call, one_host);
  post.dtype = call.dtype;
  post.reduction = call.reduction();
  post.scale = call.scale(topology().size);
  if (!one_host) post.scale.post = 1.0;  // applied by the root of the tree
  if (post.inlined || sizes_come(call)) {
    post.number_count = numbers(call);
    post.numbers = call.ranks ? call.counts : &size;
  }
  post.slot_bytes = numbers(call) ? table_.slot_room() : round_up(call.bytes, kLine);
  if (post.inlined) {
    post.inline_data = data;
    post.inline_bytes = laid(call, topology().rank);
    post.reduced = post.inline_bytes && call.kind->small == Kind::Small::kReduced;
  } else if (call.kind->fuses && call.bytes <= std::min(kFuseBytes, config_.fusion_bytes)) {
    post.fuse = fuse_with(call);
  }
  return table_.post(post, !one_host, posted, entry);
}

Status ProcessSet::post(const OpRef& op, bool* posted) {
  const Submission& s = op->submission;
  const Call call = s.call();
  char together[kSmallBytes];
  const char* data = s.pieces.empty() ? nullptr : s.pieces[0].in;
  if (s.pieces.size() > 1 && is_small(call, topology().host_count() == 1)) Pieces(s.pieces).gather(0, call.bytes, together), data = together;
  RR_TRY(post(call, op->key, data, posted, &op->entry));
  if (*posted) {
    op->posted = true;
    by_entry_[op->entry] = op;
  }
  return Status::ok();
}

// On one host the sizes of an allgather's parts come with the decision, whatever they are.
bool ProcessSet::sizes_come(const Call& call) const {
  return topology().host_count() == 1 && !call.on_gpu && numbers(call) && call.kind->counts == Kind::Counts::kNone;
}

void ProcessSet::read_sizes(Op* op) const {
  if (!sizes_come(op->submission.call())) return;
  op->output.counts.resize(topology().size);
  for (int i = 0; i < topology().size; ++i)
    std::memcpy(&op->output.counts[i], table_.slot(op->entry, i, table_.slot_room()), sizeof(int64_t));
}

// Of a small operation that is decided: part 0, 1, ... of what this rank takes.
Status ProcessSet::part(const Call& call, uint32_t entry, int index, Span* part) const {
  if (call.bytes > kSmallBytes) return damaged();
  Range range;
  if (call.kind->small != Kind::Small::kGathered) {
    range = of_result(call, topology().rank);
    *part = {table_.result(entry) + range.begin, range.bytes()};
    return Status::ok();
  }
  const size_t front = numbers(call) * sizeof(int64_t);
  const int source = front ? index : call.root;
  char* slot = table_.slot(entry, source, front ? table_.slot_room() : round_up(call.bytes, kLine));
  if (!of_slot(call, reinterpret_cast<const int64_t*>(slot), source, topology().rank, &range)) return damaged();
  *part = {slot + front + range.begin, range.bytes()};
  return Status::ok();
}

int ProcessSet::part_count(const Call& call) const { return numbers(call) ? topology().size : 1; }

Status ProcessSet::take_small(Op* op) const {
  const Submission& s = op->submission;
  const Call call = s.call();
  if (call.kind->small == Kind::Small::kNothing) return Status::ok();
  Span one;
  if (call.kind->alike) {
    RR_TRY(part(call, op->entry, 0, &one));
    if (one.bytes) Pieces(s.pieces).scatter(0, one.bytes, one.data, false);
    return Status::ok();
  }
  const int count = part_count(call);
  op->output.counts.resize(count);
  for (int i = 0; i < count; ++i) {
    RR_TRY(part(call, op->entry, i, &one));
    op->output.counts[i] = static_cast<int64_t>(one.bytes);
  }
  RR_TRY(op->output.allocate());
  char* to = op->output.data.get();
  for (int i = 0; i < count; to += one.bytes, ++i) {
    RR_TRY(part(call, op->entry, i, &one));
    if (one.bytes) std::memcpy(to, one.data, one.bytes);
  }
  return Status::ok();
}

// False in *taken where the result is not as large as its room.
Status ProcessSet::take_small(const PlainCall& call, uint32_t entry, bool* taken) const {
  *taken = true;
  if (call.kind->small == Kind::Small::kNothing) return Status::ok();
  const int count = part_count(call);
  char *to = call.out, *const end = to + call.room;
  for (int i = 0; i < count; ++i) {
    Span one;
    RR_TRY(part(call, entry, i, &one));
    if (!call.out) continue;
    if (one.bytes > static_cast<size_t>(end - to)) return *taken = false, Status::ok();
    if (one.bytes) std::memcpy(to, one.data, one.bytes);
    to += one.bytes;
  }
  *taken = to == end;
  return Status::ok();
}

}  // namespace ringreduce
