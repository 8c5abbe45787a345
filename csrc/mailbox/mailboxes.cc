#include "mailbox/mailboxes.h"

#include <algorithm>

#include "common/because_of.h"
#include "common/keep.h"
#include "mailbox/net_link.h"

namespace ringreduce {

namespace {

// Packets from one peer in one call, so that other peers and collectives get their turn.
constexpr int kPacketsPerAdvance = 64;
// A large message to or from a rank that has shut down moves no more: longer than that rank waits for what others
// count on, since between hosts nobody sees how far a message is.
constexpr int64_t kGoneStillNs = 12'000'000'000;

std::string show(uint64_t bytes, DType dtype) {
  const uint64_t size = info(dtype).size;
  return std::to_string(bytes / size) + (bytes == size ? " element of " : " elements of ") + info(dtype).name;
}

Status damaged(int rank, const std::string& what) {
  return {Code::kPeerLost, "rank " + std::to_string(rank) + " has sent " + what + ": its memory or a message was damaged"};
}

}  // namespace

Mailboxes::Mailboxes(int set_id, const Topology* topology, MailMemory memory, Net* net, int first_tag,
                     std::function<std::string(int)> farewell)
    : set_id_(set_id),
      topology_(topology),
      memory_(std::move(memory)),
      net_(topology->host_count() > 1 ? net : nullptr),
      first_tag_(first_tag),
      farewell_(std::move(farewell)) {
  for (int rank : topology->local_ranks()) peer(rank);
}

// What MPI cannot take back is kept by the links; a receive it can.
Mailboxes::~Mailboxes() {
  for (auto& [number, message] : in_flight_) drop(message, Status::ok());
}

Mailboxes::Peer& Mailboxes::peer(int set_rank) {
  Peer& peer = peers_[set_rank];
  if (peer.link) return peer;
  peer.rank = set_rank;
  peer.world = topology_->world[set_rank];
  if (remote(set_rank)) {
    peer.link = std::make_unique<NetLink>(net_, peer.world, first_tag_);
  } else {
    auto link = std::make_unique<HostLink>(&memory_, topology_->local_of[set_rank], peer.world);
    peer.on_host = link.get();
    peer.link = std::move(link);
  }
  return peer;
}

Status Mailboxes::address(Message* message) const {
  const std::string what = message->is_send ? "send" : "recv", argument = message->is_send ? "dest" : "source";
  if (message->tag < 0) return {Code::kInvalid, what + ": tag is " + std::to_string(message->tag) + "; allowed are 0 and more"};
  message->any = !message->is_send && message->peer == MessageSpec::kAnySource;
  if (message->any) return Status::ok();
  const auto& world = topology_->world;
  const auto at = std::lower_bound(world.begin(), world.end(), message->peer);
  if (at == world.end() || *at != message->peer)
    return {Code::kInvalid, what + ": " + argument + " is " + std::to_string(message->peer) +
                                ", which is not a global rank of the process set (" + show_ranks(world) + ")"};
  message->at = static_cast<int>(at - world.begin());
  return Status::ok();
}

// `change`: 1 as it begins to wait, -1 as it has ended.
void Mailboxes::wait_for(const Message& message, int change) {
  if (message.at == MessageSpec::kAnySource) return void(any_ += change);
  Peer& of = peer(message.at);
  of.waiting += change;
  if (of.on_host) return;
  if (of.waiting) remote_waiting_.insert(of.rank);
  else remote_waiting_.erase(of.rank);
}

Status Mailboxes::enlist(const MessageRef& message) {
  RR_TRY(address(message.get()));
  if (message->is_send && peer(message->at).on_host) RR_TRY(peer(message->at).on_host->reserve());
  message->set_id = set_id_;
  message->number = posted_++;
  message->submitted_ns = message->limit_since_ns = now_ns();
  in_flight_.emplace(message->number, message);
  wait_for(*message, 1);
  return Status::ok();
}

Status Mailboxes::post(const MessageRef& message) {
  if (message->is_send) {
    Peer& to = peer(message->at);
    to.queue.push_back(message);
    busy_.insert(to.rank);
    bool moved = false;
    return push(to, &moved);
  }
  Arrival arrival;
  if (!matching_.take(*message, &arrival)) {
    matching_.post(message);
    bool moved = false;
    return look(&moved);
  }
  Peer& from = peer(arrival.source);
  meet(from, message);
  if (arrival.packet.type == Packet::Type::kAnnounce) return accept(from, arrival.packet, message);
  const Status status = mismatch(*message, arrival.packet);
  if (status.is_ok()) std::copy(arrival.payload.begin(), arrival.payload.end(), message->data);
  finish(message, status);
  return Status::ok();
}

Status Mailboxes::advance(bool* moved) {
  RR_TRY(look(moved));
  for (auto at = busy_.begin(); at != busy_.end();) {
    const int rank = *at++;  // which push() may take out
    RR_TRY(push(peer(rank), moved));
  }
  return Status::ok();
}

Status Mailboxes::drain(bool* moved) {
  const size_t most = memory_.capacity() / sizeof(Packet) / kPacketsPerAdvance;  // a full ring; a peer may go on to fill it
  bool more = true;
  for (size_t i = 0; more && i <= most; ++i) {
    more = false;
    RR_TRY(advance(&more));
    *moved = *moved || more;
  }
  return Status::ok();
}

// For what has arrived.
Status Mailboxes::look(bool* moved) {
  const uint64_t news = memory_.news();
  if (news != news_ && !in_flight_.empty()) {
    news_ = news;
    for (int rank : topology_->local_ranks()) RR_TRY(look(peer(rank), moved));
  }
  if (!net_) return Status::ok();
  if (any_) {
    for (int rank = 0; rank < topology_->size; ++rank)
      if (remote(rank)) RR_TRY(look(peer(rank), moved));
    return Status::ok();
  }
  const std::set<int> awaited = remote_waiting_;  // fewer, afterwards
  for (int rank : awaited) RR_TRY(look(peer(rank), moved));
  return Status::ok();
}

Status Mailboxes::look(Peer& from, bool* moved) {
  Packet packet;
  for (int i = 0;; ++i) {
    bool there = false;
    RR_TRY(from.link->next(&packet, &there));
    if (!there) break;
    if (i == kPacketsPerAdvance) {
      --news_;  // there is more: look again
      break;
    }
    *moved = true;
    RR_TRY(take(from, packet));
  }
  from.link->settle();
  return Status::ok();
}

Status Mailboxes::take(Peer& from, const Packet& packet) {
  switch (packet.type) {
    case Packet::Type::kWhole:
    case Packet::Type::kAnnounce: return take_message(from, packet);
    case Packet::Type::kData: return take_data(from, packet);
    case Packet::Type::kWithdraw: return from.link->take(nullptr), take_withdrawal(from, packet), Status::ok();
    case Packet::Type::kAccept:
    case Packet::Type::kRefuse: from.link->take(nullptr);
  }
  const auto at = in_flight_.find(packet.number);
  if (at != in_flight_.end() && at->second->is_send && at->second->at == from.rank && at->second->phase == Message::Phase::kAnnounced)
    return take_answer(from, packet), Status::ok();
  return gave_up_ ? Status::ok() : damaged(from.world, "an answer to a message that this rank has not announced");
}

Status Mailboxes::take_message(Peer& from, const Packet& packet) {
  const bool whole = packet.type == Packet::Type::kWhole;
  if (static_cast<int>(packet.dtype) >= kDTypeCount || packet.tag < 0 || packet.payload != (whole ? packet.bytes : 0))
    return damaged(from.world, "a message that cannot be");
  const MessageRef receive = matching_.take(from.rank, packet.tag);
  if (!receive) {
    Arrival arrival{from.rank, packet};
    arrival.payload.resize(packet.payload);
    from.link->take(arrival.payload.data());
    matching_.keep(std::move(arrival));
    return Status::ok();
  }
  meet(from, receive);
  if (!whole) {
    from.link->take(nullptr);
    return accept(from, packet, receive);
  }
  const Status status = mismatch(*receive, packet);
  from.link->take(status.is_ok() ? receive->data : nullptr);
  finish(receive, status);
  return Status::ok();
}

// The message of a receive is there, whatever it is.
void Mailboxes::meet(Peer& from, const MessageRef& receive) {
  ++counts_.received[from.world];
  if (!receive->any) return;
  wait_for(*receive, -1);
  receive->at = from.rank;
  receive->peer = from.world;
  wait_for(*receive, 1);
}

Status Mailboxes::mismatch(const Message& receive, const Packet& packet) const {
  if (packet.dtype == receive.dtype && packet.bytes == receive.bytes) return Status::ok();
  return {Code::kMismatch, receive.title() + ": the tensor has " + show(receive.bytes, receive.dtype) + ", but rank " +
                               std::to_string(receive.peer) + " has sent " + show(packet.bytes, packet.dtype)};
}

Status Mailboxes::accept(Peer& from, const Packet& packet, const MessageRef& receive) {
  const Status status = mismatch(*receive, packet);
  Packet answer = packet;
  answer.type = status.is_ok() ? Packet::Type::kAccept : Packet::Type::kRefuse;
  answer.bytes = receive->bytes;
  answer.dtype = receive->dtype;
  from.answers.push_back(answer);
  busy_.insert(from.rank);
  bool moved = false;
  if (!status.is_ok()) {
    finish(receive, status);
    return push(from, &moved);
  }
  receive->phase = Message::Phase::kMoving;
  receive->sent_as = packet.number;
  from.arriving.push_back(receive);
  if (!from.on_host) RR_TRY(from.link->move(receive.get(), &moved));  // before its sender hears of it
  return push(from, &moved);
}

void Mailboxes::take_answer(Peer& from, const Packet& packet) {
  const MessageRef send = in_flight_.at(packet.number);
  if (packet.type == Packet::Type::kAccept) {
    send->phase = Message::Phase::kMoving;
    from.leaving.push_back(send);
    busy_.insert(from.rank);
    return;
  }
  const DType dtype = static_cast<int>(packet.dtype) < kDTypeCount ? packet.dtype : DType::kUint8;
  finish(send, {Code::kMismatch, send->title() + ": the message has " + show(send->bytes, send->dtype) + ", but rank " +
                                     std::to_string(from.world) + " receives it into a tensor of " + show(packet.bytes, dtype)});
}

// Not kept and not accepted: it was refused meanwhile, which its sender need not know.
void Mailboxes::take_withdrawal(Peer& from, const Packet& packet) {
  if (matching_.drop(from.rank, packet.tag, packet.number)) return;
  const auto at = std::find_if(from.arriving.begin(), from.arriving.end(),
                               [&](const MessageRef& one) { return one->sent_as == packet.number; });
  if (at == from.arriving.end()) return;
  const MessageRef receive = *at;
  give_up(receive, {Code::kPeerLost, receive->title() + " cannot complete: " + farewell_(from.world)});
}

// Within a host they come in the order in which their senders write them: one message after the other.
Status Mailboxes::take_data(Peer& from, const Packet& packet) {
  const auto at = std::find_if(from.arriving.begin(), from.arriving.end(),
                               [&](const MessageRef& one) { return one->sent_as == packet.number; });
  if (at == from.arriving.end() && gave_up_) return from.link->take(nullptr), Status::ok();
  if (at == from.arriving.end() || packet.payload > (*at)->bytes - (*at)->moved)
    return damaged(from.world, "data that this rank does not expect");
  const MessageRef receive = *at;
  from.link->take(receive->data + receive->moved);
  receive->moved += packet.payload;
  if (receive->moved < receive->bytes) return Status::ok();
  from.arriving.erase(at);
  finish(receive, Status::ok());
  return Status::ok();
}

Status Mailboxes::push(Peer& to, bool* moved) {
  bool taken = true;
  while (taken && !to.answers.empty()) {
    RR_TRY(to.link->put(to.answers.front(), nullptr, &taken));
    if (taken) to.answers.pop_front();
    *moved = *moved || taken;
  }
  while (taken && !to.queue.empty()) {
    const MessageRef send = to.queue.front();
    RR_TRY(put(to, send, &taken));
    if (taken) to.queue.pop_front();
    *moved = *moved || taken;
  }
  RR_TRY(to.link->flush());
  RR_TRY(move(to.leaving, to, moved));
  if (!to.on_host) RR_TRY(move(to.arriving, to, moved));
  const bool more = !to.answers.empty() || !to.queue.empty() || !to.leaving.empty() || (!to.on_host && !to.arriving.empty());
  if (!more && !to.link->sending()) busy_.erase(to.rank);
  return Status::ok();
}

Status Mailboxes::put(Peer& to, const MessageRef& send, bool* taken) {
  const bool whole = send->bytes <= Packet::kWholeBytes;
  Packet packet;
  packet.type = whole ? Packet::Type::kWhole : Packet::Type::kAnnounce;
  packet.payload = static_cast<uint32_t>(whole ? send->bytes : 0);
  packet.number = send->number;
  packet.bytes = send->bytes;
  packet.tag = send->tag;
  packet.dtype = send->dtype;
  RR_TRY(to.link->put(packet, send->data, taken));
  if (!*taken) return Status::ok();
  ++counts_.sent[to.world];
  send->phase = Message::Phase::kAnnounced;
  if (whole) finish(send, Status::ok());
  return Status::ok();
}

// Between hosts all at once, within a host one after the other.
Status Mailboxes::move(std::deque<MessageRef>& messages, Peer& with, bool* moved) {
  for (const MessageRef& message : messages) {
    if (message->moved == message->bytes) continue;  // behind one that is not done
    RR_TRY(with.link->move(message.get(), moved));
    if (with.on_host && message->moved < message->bytes) break;
  }
  while (!messages.empty() && messages.front()->moved == messages.front()->bytes) {
    const MessageRef message = std::move(messages.front());
    messages.pop_front();
    finish(message, Status::ok());
  }
  return Status::ok();
}

void Mailboxes::finish(const MessageRef& message, Status status) {
  wait_for(*message, -1);
  in_flight_.erase(message->number);
  message->finish(std::move(status));
}

bool Mailboxes::on_net() const { return net_ && (any_ || !remote_waiting_.empty() || sending()); }

bool Mailboxes::sending() const {
  return std::any_of(busy_.begin(), busy_.end(), [this](int rank) {
    const Peer& to = peers_.at(rank);
    return !to.gone && (to.link->sending() || !to.answers.empty());
  });
}

bool Mailboxes::committed() const {
  const auto leaves = [this](int rank) { return !peers_.at(rank).gone && peers_.at(rank).link->sending(); };
  if (std::any_of(busy_.begin(), busy_.end(), leaves)) return true;
  return std::any_of(in_flight_.begin(), in_flight_.end(), [](const auto& one) { return one.second->phase == Message::Phase::kMoving; });
}

bool Mailboxes::in_vain(Message* message, const std::vector<int>& gone, int64_t posted_by_ns) const {
  const auto has_gone = [&gone](int rank) { return std::find(gone.begin(), gone.end(), rank) != gone.end(); };
  if (message->submitted_ns > posted_by_ns) return false;
  if (message->at == MessageSpec::kAnySource)
    return std::all_of(topology_->world.begin(), topology_->world.end(),
                       [&](int rank) { return rank == topology_->world[topology_->rank] || has_gone(rank); });
  if (!has_gone(message->peer)) return false;
  if (message->phase != Message::Phase::kMoving) return true;
  const int64_t now = now_ns();
  if (!message->still_since_ns || message->moved != message->seen_moved) message->still_since_ns = now;
  message->seen_moved = message->moved;
  return now - message->still_since_ns > kGoneStillNs;
}

Status Mailboxes::withdraw(Code code, const std::string& why, const std::vector<int>* gone, int64_t posted_by_ns) {
  for (auto& [rank, peer] : peers_)
    peer.gone = peer.gone || (gone && std::find(gone->begin(), gone->end(), peer.world) != gone->end());
  std::vector<MessageRef> given_up;
  for (auto& [number, message] : in_flight_)
    if (gone ? in_vain(message.get(), *gone, posted_by_ns) : message->phase != Message::Phase::kMoving) given_up.push_back(message);
  for (const MessageRef& message : given_up) give_up(message, {code, message->title() + why});
  for (int rank : std::set<int>(busy_)) {  // withdrawals
    bool moved = false;
    if (!peer(rank).gone) RR_TRY(push(peer(rank), &moved));
  }
  return Status::ok();
}

void Mailboxes::give_up(const MessageRef& message, const Status& status) {
  gave_up_ = true;
  const auto out_of = [&message](std::deque<MessageRef>& from) { from.erase(std::remove(from.begin(), from.end(), message), from.end()); };
  if (message->phase == Message::Phase::kMoving) {
    out_of(message->is_send ? peer(message->at).leaving : peer(message->at).arriving);
    if (!message->is_send && message->transfer.active()) net_->cancel(&message->transfer);
  } else if (!message->is_send) {
    matching_.withdraw(*message);
  } else if (message->phase == Message::Phase::kQueued) {
    out_of(peer(message->at).queue);
  } else if (Peer& to = peer(message->at); !to.gone) {
    Packet packet;
    packet.type = Packet::Type::kWithdraw;
    packet.number = message->number;
    packet.tag = message->tag;
    to.answers.push_back(packet);
    busy_.insert(to.rank);
  }
  wait_for(*message, -1);
  in_flight_.erase(message->number);
  drop(message, status);
}

bool Mailboxes::take_back(const MessageRef& message) {
  if (message->is_send || message->is_done() || message->phase != Message::Phase::kQueued) return false;
  matching_.withdraw(*message);
  finish(message, {Code::kInvalid, message->title() + " was taken back by its caller"});
  return true;
}

// Transfers in flight may still refer to the memory of a message: better leaked than freed.
void Mailboxes::drop(const MessageRef& message, const Status& status) {
  if (message->transfer.active()) {
    keep_for_good(message);
    keep_for_good(std::move(message->keep));
  }
  message->finish(status);
}

void Mailboxes::fail(const Status& status) {
  auto all = std::move(in_flight_);
  in_flight_.clear();
  for (auto& [number, message] : all) drop(message, because_of(status, *message));
  matching_ = Matching();
  for (auto& [rank, peer] : peers_) {
    peer.answers.clear();
    peer.queue.clear();
    peer.leaving.clear();
    peer.arriving.clear();
    peer.waiting = 0;
  }
  remote_waiting_.clear();
  any_ = 0;
}

}  // namespace ringreduce
