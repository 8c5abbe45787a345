#include "engine/process_set.h"

#include <algorithm>
#include <cstring>

#include "collectives/allgather.h"
#include "collectives/allreduce.h"
#include "collectives/kinds.h"
#include "common/because_of.h"
#include "common/clock.h"
#include "common/keep.h"
#include "gpu/split.h"

namespace ringreduce {

namespace {

// Steps of a machine in one call, so that other sets and plans get their turn.
constexpr int kStepsPerCall = 16;

// Of synchronous programs, and some more.
constexpr size_t kFirstEntries = 16;

// header | status pages | table, state of the mailboxes | staging | data of the table's entries | rings of the mailboxes
struct Layout {
  size_t pages, table, mail, staging, data, rings, total;
};

Layout layout(int local_size, size_t chunk_bytes) {
  Layout at{};
  at.pages = round_up(sizeof(SetHeader), kStatusPageBytes);
  at.table = at.pages + local_size * kStatusPageBytes;
  at.mail = round_up(at.table + OpTable::bytes(), kLine);
  at.staging = round_up(at.mail + MailMemory::state_bytes(local_size), 4096);
  at.data = round_up(at.staging + Staging::staging_bytes(local_size, chunk_bytes), 4096);
  at.rings = round_up(at.data + OpTable::data_bytes(local_size), 4096);
  at.total = at.rings + MailMemory::rings_bytes(local_size);
  return at;
}

}  // namespace

// What ranks of this host write there is in one table, so it cannot be said which one it was.
Status ProcessSet::damaged() {
  return {Code::kPeerLost, "the table of operations in the host's memory is damaged; a rank of this host has written over it"};
}

size_t ProcessSet::segment_bytes(int local_size, size_t chunk_bytes) { return layout(local_size, chunk_bytes).total; }
size_t ProcessSet::reserved_bytes(int local_size, size_t chunk_bytes) {
  return layout(local_size, chunk_bytes).data + OpTable::data_bytes(local_size, kFirstEntries);
}

ProcessSet::ProcessSet(const SetConfig& config) : config_(config), by_entry_(kMaxPending) {
  // With three or more hosts the ring adds in an order that depends on where in the buffer an
  // element lies, so fusing by chance would change bits. Recursive doubling does not: fuse
  // only what it reduces (a part for each rail).
  if (topology().host_count() > 2)
    config_.fusion_bytes = std::min({config_.fusion_bytes, HostReduce::kDoublingBytes * topology().rails, config_.chunk_bytes});
  char* memory = config_.segment->data();
  header_ = reinterpret_cast<SetHeader*>(memory);
  if (!config_.bell) config_.bell = &header_->bell;
  const int locals = topology().local_size();
  const Layout at = layout(locals, config_.chunk_bytes);
  table_ = OpTable(config_.segment.get(), at.table, at.data, locals, topology().local(), config_.bell);
  channel_.topology = &config_.topology;
  channel_.stream = Staging(&header_->stream, memory + at.staging, locals, config_.chunk_bytes, config_.small_chunk_bytes, config_.bell);
  channel_.net = config_.net;
  channel_.peers = config_.peers;
  channel_.read_any_size = config_.read_any_size;
  channel_.first_tag = config_.channel * Channel::kTags;
  gpu_.channel = &channel_;
  farewells_ = std::make_unique<Farewells>(&header_->farewells, &config_.topology, config_.processes);
  departures_ = std::make_shared<Departures>(&header_->departures, config_.segment, topology().world, topology().local(), config_.bell);
  mail_ = std::make_unique<Mailboxes>(
      id(), &config_.topology, MailMemory(config_.segment, at.mail, at.rings, locals, topology().local(), config_.bell),
      config_.net, channel_.tag(Channel::kMail), [this](int rank) { return farewells_->text({rank}); });
  if (topology().host_count() > 1 && topology().leader())
    tree_ = std::make_unique<HostTree>(channel_, config_.tree_arity, config_.fusion_bytes);
}

StatusPage* ProcessSet::status_page(const Segment& segment, int local) {
  return reinterpret_cast<StatusPage*>(segment.data() + layout(0, 0).pages + local * kStatusPageBytes);
}

Status ProcessSet::enlist(const std::vector<OpRef>& group) {
  for (const OpRef& op : group) RR_TRY(validate(op->submission.call(), topology().size));
  const uint64_t unnamed = unnamed_;
  for (size_t i = 0; i < group.size(); ++i) {
    if (enlist(group[i])) continue;
    const std::string why = missing(*in_flight_.at(group[i]->key)).text;
    for (size_t k = 0; k < i; ++k) in_flight_.erase(group[k]->key);
    unnamed_ = unnamed;
    return {Code::kInvalid, group[i]->title() + " is in flight already" + (why.empty() ? "" : " (" + why + ")") +
                                "; wait for it, or use another name"};
  }
  return Status::ok();
}

// False if its name is taken.
bool ProcessSet::enlist(const OpRef& op) {
  op->set_id = id();
  op->output.into = op->submission.outputs;
  op->key = make_key(op->submission.call(), unnamed_);
  if (op->submission.name.empty()) ++unnamed_;
  op->submitted_ns = op->limit_since_ns = now_ns();
  return in_flight_.emplace(op->key, op).second;
}

Status ProcessSet::post(const std::vector<OpRef>& group) {
  for (const OpRef& op : group) {
    bool posted = false;
    if (deferred_.empty()) RR_TRY(post(op, &posted));
    if (!posted) deferred_.push_back(op);
  }
  return Status::ok();
}

Status ProcessSet::advance(bool* moved) {
  while (!deferred_.empty()) {
    bool posted = false;
    RR_TRY(post(deferred_.front(), &posted));
    if (!posted) break;
    deferred_.pop_front();
    *moved = true;
  }
  if (tree_) RR_TRY(agree(moved));
  RR_TRY(run_machine(moved));
  while (!machine_) {
    bool took = false;
    RR_TRY(take_decision(&took));
    if (!took) break;
    *moved = true;
    moved_ns_ = now_ns();
  }
  RR_TRY(mail_->advance(moved));
  if (!mail_->idle() || mail_->sending()) RR_TRY(take_gone_senders(moved));
  return in_flight_.empty() ? Status::ok() : take_gone();
}

// The leader's part: what is complete on this host goes up the tree, decisions come down.
Status ProcessSet::agree(bool* moved) {
  uint32_t index;
  while (table_.next_complete(&index)) {
    if (index >= kMaxPending || table_.entry(index).inline_bytes > kSmallBytes) return damaged();
    const OpRef& op = by_entry_[index];
    if (!op) return {Code::kPeerLost, "an operation is complete that this rank had given up"};
    const Submission& s = op->submission;
    RR_TRY(tree_->report(index, table_.entry(index), table_.result(index), {s.dtype, s.reduction(), s.scale(topology().size).post}));
    *moved = true;
  }
  for (int rank : farewells_->here()) tree_->gone(rank, farewells_->why(rank));
  RR_TRY(tree_->advance(moved));
  for (const Departure& departure : tree_->take_departures()) RR_TRY(departures_->add(departure));
  for (const auto& [rank, why] : tree_->gone_ranks()) farewells_->hear(rank, why);
  HostTree::Decided decided;
  while (tree_->next(&decided)) {
    if (decided.verdict == Verdict::kInline)
      std::copy_n(decided.result, table_.entry(decided.entry).inline_bytes, table_.result(decided.entry));
    RR_TRY(table_.append(decided.entry, decided.verdict, decided.group));
    *moved = true;
  }
  return Status::ok();
}

Status ProcessSet::run_machine(bool* moved) {
  if (!machine_) return Status::ok();
  for (int i = 0; i < kStepsPerCall && !machine_->done(); ++i) {
    bool stepped = false;
    const Status status = machine_->advance(&stepped);
    if (!status.is_ok()) return status.because(running_[0]->title());
    if (!stepped) break;
    *moved = true;
  }
  if (*moved) moved_ns_ = now_ns();
  if (!machine_->done()) return Status::ok();
  machine_.reset();
  finish_group();
  *moved = true;
  return Status::ok();
}

Status ProcessSet::take(uint32_t entry, OpRef* op) {
  if (entry >= kMaxPending) return damaged();
  *op = std::move(by_entry_[entry]);
  by_entry_[entry] = nullptr;
  // Given up when a peer shut down, and decided all the same: the peers will run it without us.
  if (!*op) return {Code::kPeerLost, "an operation was agreed on after this rank had given it up"};
  (*op)->decided = true;
  return Status::ok();
}

Status ProcessSet::take_decision(bool* moved) {
  Decision* decision = table_.decision(position_);
  if (!decision) return Status::ok();
  const uint32_t entry = decision->entry;
  if (decision->verdict == Verdict::kRun) {
    const uint64_t before = position_;
    RR_TRY(start_group());
    *moved = position_ != before;
    return Status::ok();
  }
  *moved = true;
  OpRef op;
  RR_TRY(take(entry, &op));
  ++position_;
  if (decision->verdict == Verdict::kInline) {
    RR_TRY(take_small(op.get()));
    RR_TRY(table_.release(entry));
    finish(op, op->output.finish());
    return Status::ok();
  }
  start_description(op);
  return table_.release(entry);
}

Status ProcessSet::start_group() {
  uint32_t count = 0;
  RR_TRY(table_.group(position_, config_.fusion_bytes, &count));
  if (count > kMaxPending) return damaged();
  running_.clear();
  for (uint32_t i = 0; i < count; ++i) {
    // The leader of a set that spans hosts appends a group one by one: wait for all of it.
    if (!table_.decision(position_ + i)) return running_.clear(), Status::ok();
  }
  for (uint32_t i = 0; i < count; ++i, ++position_) {
    const uint32_t entry = table_.decision(position_)->entry;
    running_.emplace_back();
    OpRef& op = running_.back();
    RR_TRY(take(entry, &op));
    read_sizes(op.get());
    RR_TRY(table_.release(entry));
  }
  if (running_[0]->submission.kind == &kSplit) {
    machine_ = std::make_unique<Split>(&gpu_, running_[0]->split_child);
    return Status::ok();
  }
  if (running_[0]->gpu) {
    std::vector<GpuCall> calls;
    for (const OpRef& op : running_) calls.push_back({&op->submission, &op->output, op->gpu, op->title()});
    machine_ = make_gpu_machine(&gpu_, std::move(calls));
    return Status::ok();
  }
  if (!running_[0]->submission.kind->machine) return damaged();  // such as a barrier, which is never to be run
  if (running_.size() == 1) {
    machine_ = running_[0]->submission.kind->machine(&channel_, running_[0]->submission, &running_[0]->output);
    return Status::ok();
  }
  Pieces pieces;
  for (const OpRef& op : running_)
    for (const Piece& piece : op->submission.pieces) pieces.append(piece);
  machine_ = std::make_unique<Allreduce>(&channel_, std::move(pieces), running_[0]->submission);
  return Status::ok();
}

// Ranks disagree: instead of the operation, all exchange what they submitted.
void ProcessSet::start_description(const OpRef& op) {
  running_ = {op};
  describing_ = true;
  description_ = describe(op->submission, topology().world);
  descriptions_ = Output();
  machine_ = std::make_unique<Allgather>(&channel_, description_.data(), description_.size(), &descriptions_);
}

void ProcessSet::finish_group() {
  const bool disagree = std::exchange(describing_, false);
  const Status status = disagree ? mismatch() : Status::ok();
  std::vector<OpRef> group = std::move(running_);
  running_.clear();
  for (const OpRef& op : group) finish(op, disagree ? status : op->output.finish());
}

void ProcessSet::finish(const OpRef& op, Status status) {
  // On the GPU it has only begun: what it reads and writes stays until the GPU has been there.
  std::shared_ptr<void>& keep = op->submission.keep;
  if (keep && op->gpu && op->gpu->finished) gpu_.communicator->watch(op->gpu->finished, op->title(), std::move(keep));
  in_flight_.erase(op->key);
  config_.last->set(*op->submission.kind, op->submission.name, op->key.b, id());
  op->finish(std::move(status));
}

// Transfers in flight, and the GPU, may still refer to the buffers of a machine and its operations:
// better leaked than freed.
void ProcessSet::keep_running() {
  for (const OpRef& op : running_) {
    op->kept_for_good = true;
    keep_for_good(op);
    keep_for_good(std::move(op->submission.keep));
  }
  if (!config_.net) return;
  try {
    keep_for_good(std::shared_ptr<Machine>(std::move(machine_)));
  } catch (const std::exception&) {
    (void)machine_.release();
  }
}

void ProcessSet::fail(const Status& status) {
  if (machine_) channel_.stream.break_off();  // others may be reading this rank's memory
  if (machine_ && (config_.net || running_[0]->gpu)) keep_running();
  machine_.reset();
  running_.clear();
  describing_ = false;
  deferred_.clear();
  auto all = std::move(in_flight_);
  in_flight_.clear();
  for (auto& [key, op] : all) op->finish(because_of(status, *op));
  mail_->fail(status);
}

}  // namespace ringreduce
