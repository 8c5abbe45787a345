#include "agreement/op_table.h"

#include <cstring>

#include "common/slices.h"
#include "kernels/kernels.h"

namespace ringreduce {

namespace {
constexpr uint32_t kChains = 4096;
}

// Indices are stored plus one, so that zeroed memory is an empty table.
struct OpTable::Header {
  ShmLock lock;
  uint32_t free_list;          // entries used before and free again
  uint32_t used;               // entries ever used
  uint32_t chains[kChains];
  alignas(64) std::atomic<uint64_t> log_size;
  alignas(64) std::atomic<uint64_t> complete_size;
};

size_t OpTable::bytes() {
  return round_up(sizeof(Header), kLine) + kMaxPending * sizeof(Entry) + round_up(kMaxPending * sizeof(Decision), kLine) +
         round_up(kMaxPending * sizeof(uint32_t), kLine);
}

size_t OpTable::data_bytes(int local_size, size_t entries) { return entries * slot_room(local_size) * (local_size + size_t{1}); }

OpTable::OpTable(Segment* segment, size_t at, size_t data, int local_size, int local, Bell* bell)
    : segment_(segment), data_(segment->data() + data), locals_(local_size), local_(local), bell_(bell) {
  char* memory = segment->data() + at;
  auto take = [&memory](size_t bytes) { return memory += round_up(bytes, kLine), memory - round_up(bytes, kLine); };
  header_ = reinterpret_cast<Header*>(take(sizeof(Header)));
  entries_ = reinterpret_cast<Entry*>(take(kMaxPending * sizeof(Entry)));
  log_ = reinterpret_cast<Decision*>(take(kMaxPending * sizeof(Decision)));
  complete_ = reinterpret_cast<uint32_t*>(take(kMaxPending * sizeof(uint32_t)));
}

uint32_t OpTable::find(const Key& key) const {
  uint32_t at = header_->chains[key.a % kChains];
  while (at && !(entries_[at - 1].key == key)) at = entries_[at - 1].next;
  return at;
}

uint32_t OpTable::allocate(const Post& post) {
  uint32_t at = header_->free_list;
  if (at) {
    header_->free_list = entries_[at - 1].next;
  } else if (header_->used < kMaxPending) {
    at = ++header_->used;
  } else {
    return 0;
  }
  Entry& entry = entries_[at - 1];
  uint32_t& chain = header_->chains[post.key.a % kChains];
  entry.key = post.key;
  entry.signature = post.signature;
  entry.fuse = post.fuse;
  entry.bytes = post.bytes;
  entry.next = chain;
  entry.arrived = 0;
  entry.inline_bytes = static_cast<uint32_t>(post.inline_bytes);
  entry.mismatch = false;
  entry.inlined = post.inlined;
  entry.readers.store(locals_, std::memory_order_relaxed);
  std::memset(entry.arrived_mask, 0, sizeof entry.arrived_mask);
  chain = at;
  return at;
}

// Room for the data of `post`, of which most operations have none.
Status OpTable::reserve(uint32_t index, const Post& post) {
  Entry& entry = entries_[index];
  if (entry.reserved || !(post.inline_bytes || post.number_count)) return Status::ok();
  const Status status = segment_->reserve(static_cast<size_t>(result(index) - segment_->data()), room());
  entry.reserved = status.is_ok();
  if (!entry.reserved && !entry.arrived) {
    unlink(index);
    free_locked(index);
  }
  return status;
}

void OpTable::unlink(uint32_t index) {
  uint32_t* at = &header_->chains[entries_[index].key.a % kChains];
  while (*at != index + 1) at = &entries_[*at - 1].next;
  *at = entries_[index].next;
}

Status OpTable::post(const Post& post, bool to_leader, bool* posted, uint32_t* index) {
  bool last = false;
  RR_TRY(header_->lock.lock(local_));
  RR_TRY(post_locked(post, to_leader, posted, index, &last));
  // After the lock: waking many ranks takes long, and the first of them want the lock.
  if (last) bell_->ring();
  return Status::ok();
}

Status OpTable::post_locked(const Post& post, bool to_leader, bool* posted, uint32_t* index, bool* last) {
  const ShmLock::Held held(header_->lock);
  uint32_t at = find(post.key);
  if (!at) at = allocate(post);
  *posted = at != 0;
  if (!at) return Status::ok();
  RR_TRY(reserve(at - 1, post));
  *index = at - 1;
  Entry& entry = entries_[*index];
  if (entry.signature != post.signature) entry.mismatch = true;
  if (!post.inlined) entry.inlined = false;
  entry.arrived_mask[local_ / 64] |= uint64_t{1} << local_ % 64;
  char* mine = slot(*index, local_, post.slot_bytes);
  if (post.number_count) std::memcpy(mine, post.numbers, post.number_count * sizeof(int64_t));
  if (post.inline_bytes) std::memcpy(mine + post.number_count * sizeof(int64_t), post.inline_data, post.inline_bytes);
  *last = ++entry.arrived == static_cast<uint32_t>(locals_);
  if (*last) complete(*index, post, to_leader);
  return Status::ok();
}

// All local ranks have posted: the name is free for a next round, and the operation goes on.
void OpTable::complete(uint32_t index, const Post& post, bool to_leader) {
  Entry& entry = entries_[index];
  unlink(index);
  const bool inlined = entry.inlined && !entry.mismatch;
  if (inlined && post.reduced) reduce_inline(index, post);
  if (to_leader) {
    const uint64_t size = header_->complete_size.load(std::memory_order_relaxed);
    complete_[size % kMaxPending] = index;
    header_->complete_size.store(size + 1, std::memory_order_release);
  } else {
    append_locked(index, entry.mismatch ? Verdict::kMismatch : inlined ? Verdict::kInline : Verdict::kRun, 0);
  }
}

void OpTable::reduce_inline(uint32_t index, const Post& post) {
  const void* sources[kMaxLocal];
  for (int i = 0; i < locals_; ++i) sources[i] = slot(index, i, post.slot_bytes);
  void* dst[] = {result(index)};
  reduce(post.dtype, post.reduction,
         {dst, 1, sources, locals_, post.inline_bytes / info(post.dtype).size, post.scale});
}

void OpTable::append_locked(uint32_t index, Verdict verdict, uint32_t group) {
  // An item is overwritten kMaxPending decisions later; by then its entry was free, so every
  // rank had taken it.
  const uint64_t size = header_->log_size.load(std::memory_order_relaxed);
  Decision& item = log_[size % kMaxPending];
  item.entry = index;
  item.verdict = verdict;
  item.group.store(group, std::memory_order_relaxed);
  header_->log_size.store(size + 1, std::memory_order_release);
}

Status OpTable::append(uint32_t index, Verdict verdict, uint32_t group) {
  RR_TRY(header_->lock.lock(local_));
  append_locked(index, verdict, group);
  header_->lock.unlock();
  bell_->ring();
  return Status::ok();
}

Decision* OpTable::decision(uint64_t position) const {
  if (position >= header_->log_size.load(std::memory_order_acquire)) return nullptr;
  return &log_[position % kMaxPending];
}

// The entries from `position` on are not free before this rank has taken them, so they may be
// read; only ranks at this position ask, and the first one's answer holds for all.
Status OpTable::group(uint64_t position, size_t fusion_bytes, uint32_t* count) {
  Decision& first = log_[position % kMaxPending];
  if (first.entry >= kMaxPending) return *count = 1, Status::ok();  // take() says so
  *count = first.group.load(std::memory_order_acquire);
  if (*count) return Status::ok();
  RR_TRY(header_->lock.lock(local_));
  *count = first.group.load(std::memory_order_relaxed);
  if (!*count) {
    const uint64_t size = header_->log_size.load(std::memory_order_relaxed);
    const Entry& lead = entries_[first.entry];
    uint64_t bytes = lead.bytes;
    for (*count = 1; lead.fuse && *count < kMaxPending && position + *count < size; ++*count) {
      const Decision& item = log_[(position + *count) % kMaxPending];
      if (item.entry >= kMaxPending) break;  // take() says so
      const Entry& entry = entries_[item.entry];
      if (item.verdict != Verdict::kRun || entry.fuse != lead.fuse || bytes + entry.bytes > fusion_bytes) break;
      bytes += entry.bytes;
    }
    first.group.store(*count, std::memory_order_release);
  }
  header_->lock.unlock();
  return Status::ok();
}

Status OpTable::release(uint32_t index) {
  if (entries_[index].readers.fetch_sub(1, std::memory_order_acq_rel) != 1) return Status::ok();
  RR_TRY(header_->lock.lock(local_));
  free_locked(index);
  header_->lock.unlock();
  return Status::ok();
}

void OpTable::free_locked(uint32_t index) {
  const bool full = !header_->free_list && header_->used == kMaxPending;
  entries_[index].next = header_->free_list;
  header_->free_list = index + 1;
  if (full) bell_->ring();  // somebody may be waiting for an entry
}

bool OpTable::next_complete(uint32_t* index) {
  if (taken_complete_ == header_->complete_size.load(std::memory_order_acquire)) return false;
  *index = complete_[taken_complete_++ % kMaxPending];
  return true;
}

Status OpTable::withdraw(uint32_t index, bool* withdrawn) {
  RR_TRY(header_->lock.lock(local_));
  Entry& entry = entries_[index];
  *withdrawn = entry.arrived < static_cast<uint32_t>(locals_);
  if (*withdrawn) {
    entry.arrived_mask[local_ / 64] &= ~(uint64_t{1} << local_ % 64);
    if (--entry.arrived == 0) {
      unlink(index);
      free_locked(index);
    }
  }
  header_->lock.unlock();
  return Status::ok();
}

Status OpTable::who_posted(uint32_t index, std::vector<bool>* local) {
  RR_TRY(header_->lock.lock(local_));
  const ShmLock::Held held(header_->lock);
  for (int i = 0; i < locals_; ++i) local->push_back(entries_[index].arrived_mask[i / 64] >> i % 64 & 1);
  return Status::ok();
}

}  // namespace ringreduce
