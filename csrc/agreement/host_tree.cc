#include "agreement/host_tree.h"

#include <algorithm>
#include <cstring>

#include "agreement/farewells.h"
#include "common/keep.h"
#include "common/show.h"
#include "kernels/kernels.h"

namespace ringreduce {

namespace {

constexpr size_t kHeader = sizeof(uint32_t);
constexpr size_t kFixed = offsetof(Record, data);

Status bad(int rank, const std::string& what) {
  return {Code::kPeerLost, "rank " + std::to_string(rank) + " has sent " + what + ": its memory or a message was damaged"};
}

size_t packed(const Record& record) { return kFixed + round_up(record.inline_bytes, 8); }

}  // namespace

HostTree::HostTree(const Channel& channel, int arity, size_t fusion_bytes)
    : channel_(channel), arity_(arity), fusion_bytes_(fusion_bytes) {
  const int host = channel.topology->host(), hosts = channel.topology->host_count();
  root_ = host == 0;
  auto link = [&](int other, int send_tag) {
    links_.emplace_back();
    links_.back().host = other;
    links_.back().peer = channel.world(channel.topology->hosts[other][0]);
    links_.back().send_tag = send_tag;
  };
  for (int child = host * arity + 1; child <= host * arity + arity && child < hosts; ++child)
    link(child, Channel::kTreeDown);
  children_ = static_cast<int>(links_.size());
  if (!root_) link((host - 1) / arity, Channel::kTreeUp);
}

HostTree::~HostTree() {
  for (Link& link : links_) {
    if (link.receive.active()) channel_.net->cancel(&link.receive);
    if (link.send.active()) keep_for_good(std::make_shared<std::vector<char>>(std::move(link.out)));  // still being read
  }
}

HostTree::Pending& HostTree::pending(const Key& key) {
  Pending& p = pending_[key];
  if (p.partials.empty()) {
    p.partials.resize(children_ + 1);
    p.reported.resize(children_ + 1);
  }
  return p;
}

Status HostTree::report(uint32_t entry, const Entry& meta, const char* partial, const Combine& combine) {
  Pending& p = pending(meta.key);
  if (p.children && p.signature != meta.signature) p.mismatch = true;
  p.own = true;
  p.reported[0] = true;
  p.entry = entry;
  p.signature = meta.signature;
  p.mismatch = p.mismatch || meta.mismatch;
  p.fuse = meta.fuse;
  p.bytes = meta.bytes;
  p.inlined = meta.inlined;
  p.inline_bytes = meta.inline_bytes;
  p.combine = combine;
  p.partials[0].assign(partial, partial + meta.inline_bytes);
  return try_forward(meta.key);
}

// Combines what this subtree has contributed: own host first, then the children in order.
Record HostTree::combined(const Key& key, Pending& p) {
  Record record;
  record.key = key;
  record.signature = p.signature;
  record.verdict = p.mismatch ? Verdict::kMismatch : p.inlined ? Verdict::kInline : Verdict::kRun;
  if (record.verdict != Verdict::kInline || !p.inline_bytes) return record;
  record.inline_bytes = p.inline_bytes;
  std::vector<const void*> sources;
  for (const auto& partial : p.partials) sources.push_back(partial.data());
  void* dst[] = {record.data};
  reduce(p.combine.dtype, p.combine.reduction,
         {dst, 1, sources.data(), static_cast<int>(sources.size()), p.inline_bytes / info(p.combine.dtype).size,
          {1.0, root_ ? p.combine.post : 1.0}});
  return record;
}

Status HostTree::try_forward(const Key& key) {
  Pending& p = pending_[key];
  if (!p.own || p.children < children_) return Status::ok();
  // Ranks that submitted something else may have sent other sizes.
  for (size_t i = 0; i < p.partials.size(); ++i)
    if (p.inlined && !p.mismatch && p.partials[i].size() != p.inline_bytes)
      return bad(i ? links_[i - 1].peer : channel_.world(channel_.topology->rank), "data of another size than the operation's");
  Record record = combined(key, p);
  if (root_) {
    ready_.push_back(record);
  } else {
    record.type = Record::Type::kReport;
    links_.back().queue.push_back(record);
  }
  return Status::ok();
}

// The root fixes the order, and which neighbours in it run as one.
void HostTree::decide() {
  for (size_t i = 0; i < ready_.size();) {
    const Pending& lead = pending_[ready_[i].key];
    size_t n = 1;
    uint64_t bytes = lead.bytes;
    for (; lead.fuse && ready_[i].verdict == Verdict::kRun && i + n < ready_.size(); ++n) {
      const Pending& p = pending_[ready_[i + n].key];
      if (ready_[i + n].verdict != Verdict::kRun || p.fuse != lead.fuse || bytes + p.bytes > fusion_bytes_) break;
      bytes += p.bytes;
    }
    ready_[i].group = static_cast<uint32_t>(n);
    i += n;
  }
  for (Record& record : ready_) {
    record.type = Record::Type::kDecide;
    for (int child = 0; child < children_; ++child) links_[child].queue.push_back(record);
    decided_.push_back(record);
  }
  ready_.clear();
}

void HostTree::gone(int world_rank, const std::string& why) { gone(world_rank, why, links_.size()); }

void HostTree::gone(int world_rank, const std::string& why, size_t told_by) {
  if (!gone_.emplace(world_rank, why).second) return;
  Record record;
  record.type = Record::Type::kGone;
  record.group = static_cast<uint32_t>(world_rank);
  record.put(cut(why, FarewellBoard::Words::kMost));
  for (size_t i = 0; i < links_.size(); ++i)
    if (i != told_by) links_[i].queue.push_back(record);
}

void HostTree::left(const Departure& departure) { left(departure, links_.size()); }

void HostTree::left(const Departure& departure, size_t told_by) {
  const auto [at, first] = left_.emplace(departure.channel, departure.launches);
  if (!first && at->second <= departure.launches) return;
  at->second = departure.launches;
  if (told_by < links_.size()) departures_.push_back(departure);
  Record record;
  record.type = Record::Type::kLeft;
  record.key.a = static_cast<uint64_t>(departure.channel);
  record.signature = departure.launches;
  record.group = static_cast<uint32_t>(departure.rank);
  record.put(cut(departure.text, Departure::kText));
  for (size_t i = 0; i < links_.size(); ++i)
    if (i != told_by) links_[i].queue.push_back(record);
}

Status HostTree::check(const Link& link, const Record& record) const {
  const bool from_parent = !root_ && &link == &links_.back();
  const auto& world = channel_.topology->world;
  const bool names_rank = record.type == Record::Type::kGone || record.type == Record::Type::kLeft;
  const char* wrong = nullptr;
  if (record.type > Record::Type::kLeft) wrong = "an unknown kind of record";
  else if (record.verdict > Verdict::kMismatch) wrong = "an unknown verdict";
  else if (record.type == Record::Type::kReport && from_parent) wrong = "a report, which only hosts below this one send";
  else if (record.type == Record::Type::kDecide && !from_parent) wrong = "a decision, which only the root takes";
  else if (record.type == Record::Type::kDecide && record.group > kMaxPending) wrong = "a group of too many operations";
  else if (names_rank && std::find(world.begin(), world.end(), static_cast<int>(record.group)) == world.end())
    wrong = "the news of a rank that does not exist";
  return wrong ? bad(link.peer, wrong) : Status::ok();
}

Status HostTree::take(size_t index, const Record& record) {
  RR_TRY(check(links_[index], record));
  switch (record.type) {
    case Record::Type::kReport: return take_report(index, record);
    case Record::Type::kDecide: return take_decision(index, record);
    case Record::Type::kGone: gone(static_cast<int>(record.group), {record.data, record.inline_bytes}, index); break;
    case Record::Type::kLeft:
      left({static_cast<int64_t>(record.key.a), static_cast<int>(record.group), record.signature, {record.data, record.inline_bytes}},
           index);
  }
  return Status::ok();
}

Status HostTree::take_decision(size_t index, const Record& record) {
  const auto at = pending_.find(record.key);
  if (at == pending_.end() || !at->second.own) return bad(links_[index].peer, "a decision on an operation that this host has not reported");
  const Pending& p = at->second;
  if (record.verdict == Verdict::kInline && (!p.inlined || record.inline_bytes != p.inline_bytes))
    return bad(links_[index].peer, "a result of another size than the operation's");
  for (int child = 0; child < children_; ++child) links_[child].queue.push_back(record);
  decided_.push_back(record);
  return Status::ok();
}

Status HostTree::take_report(size_t index, const Record& record) {
  Pending& p = pending(record.key);
  // Again: a host below had given it up, as a rank has shut down. It counts once.
  if (p.reported[index + 1]) return Status::ok();
  if (record.verdict == Verdict::kMismatch) p.mismatch = true;
  if ((p.own || p.children) && p.signature != record.signature) p.mismatch = true;
  if (!p.own) p.signature = record.signature;
  p.partials[index + 1].assign(record.data, record.data + record.inline_bytes);
  p.reported[index + 1] = true;
  ++p.children;
  return try_forward(record.key);
}

Status HostTree::advance(bool* moved) {
  for (size_t i = 0; i < links_.size(); ++i) RR_TRY(receive(i, moved));
  if (!ready_.empty()) decide();
  for (Link& link : links_) RR_TRY(flush(link, moved));
  return Status::ok();
}

Status HostTree::receive(size_t index, bool* moved) {
  Link& link = links_[index];
  const int tag = static_cast<int>(index) < children_ ? Channel::kTreeUp : Channel::kTreeDown;
  for (;;) {
    if (!link.receive.active()) {
      link.in.resize(kHeader + 4 + kMessageRecords * sizeof(Record));
      RR_TRY(channel_.net->irecv(link.peer, channel_.tag(tag), link.in.data(), link.in.size(), &link.receive));
    }
    bool arrived = false;
    RR_TRY(channel_.net->test(&link.receive, &arrived));
    if (!arrived) return Status::ok();
    *moved = true;
    uint32_t count;
    std::memcpy(&count, link.in.data(), sizeof count);
    if (count > kMessageRecords) return bad(link.peer, std::to_string(count) + " records in a message");
    const char* at = link.in.data() + 2 * kHeader;  // there is room for as many of the largest
    for (uint32_t i = 0; i < count; ++i) {
      Record record;
      std::memcpy(static_cast<void*>(&record), at, kFixed);
      if (record.inline_bytes > kSmallBytes) return bad(link.peer, std::to_string(record.inline_bytes) + " bytes in a record");
      std::memcpy(record.data, at + kFixed, record.inline_bytes);
      at += packed(record);
      RR_TRY(take(index, record));
    }
  }
}

Status HostTree::flush(Link& link, bool* moved) {
  bool sent = true;
  if (link.send.active()) RR_TRY(channel_.net->test(&link.send, &sent));
  if (!sent || link.queue.empty()) return Status::ok();
  const auto count = static_cast<uint32_t>(std::min(link.queue.size(), kMessageRecords));
  link.out.resize(2 * kHeader);
  link.decides = false;
  std::memcpy(link.out.data(), &count, sizeof count);
  for (uint32_t i = 0; i < count; ++i, link.queue.pop_front()) {
    const Record& record = link.queue.front();
    link.decides = link.decides || record.type == Record::Type::kDecide;
    const size_t at = link.out.size();
    link.out.resize(at + packed(record));
    std::memcpy(link.out.data() + at, &record, kFixed);
    std::memcpy(link.out.data() + at + kFixed, record.data, record.inline_bytes);
  }
  *moved = true;
  RR_TRY(channel_.net->isend(link.peer, channel_.tag(link.send_tag), link.out.data(), link.out.size(), &link.send));
  // A short message is usually gone by now; one that is not keeps the background thread awake.
  return channel_.net->test(&link.send, &sent);
}

bool HostTree::next(Decided* decided) {
  if (decided_.empty()) return false;
  current_ = decided_.front();
  decided_.pop_front();
  const auto at = pending_.find(current_.key);
  *decided = {at->second.entry, current_.verdict, current_.group, current_.data};
  pending_.erase(at);
  return true;
}

bool HostTree::sending() const {
  return std::any_of(links_.begin(), links_.end(), [](const Link& link) { return link.send.active() || !link.queue.empty(); });
}

bool HostTree::owing() const {
  const auto decides = [](const Record& record) { return record.type == Record::Type::kDecide; };
  return std::any_of(links_.begin(), links_.end(), [&](const Link& link) {
    if (gone_.count(link.peer)) return false;
    return (link.send.active() && link.decides) || std::any_of(link.queue.begin(), link.queue.end(), decides);
  });
}

// A child reports for all hosts below it.
std::vector<int> HostTree::missing(const Key& key) const {
  std::vector<int> hosts;
  const auto at = pending_.find(key);
  for (int child = 0; child < children_; ++child)
    if (at == pending_.end() || !at->second.reported[child + 1]) hosts.push_back(links_[child].host);
  for (size_t i = 0; i < hosts.size(); ++i)
    for (int below = hosts[i] * arity_ + 1; below <= hosts[i] * arity_ + arity_ && below < channel_.topology->host_count(); ++below)
      hosts.push_back(below);
  return hosts;
}

}  // namespace ringreduce
