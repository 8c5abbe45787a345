#include "agreement/departures.h"

#include <algorithm>
#include <cstring>

#include "common/show.h"

namespace ringreduce {

Status Departure::status() const {
  return {Code::kPlanLeft, "rank " + std::to_string(rank) + " has left the gradient step: " + text};
}

Departures::Departures(DepartureBoard* board, std::shared_ptr<Segment> memory, std::vector<int> world, int local, Bell* bell)
    : board_(board), memory_(std::move(memory)), world_(std::move(world)), local_(local), bell_(bell) {}

static bool covers(const DepartureBoard::Entry& entry, const Departure& departure) {
  return entry.channel == departure.channel && entry.launches <= departure.launches;
}

Status Departures::add(const Departure& departure) {
  RR_TRY(board_->lock.lock(local_));
  const uint64_t count = board_->count.load(std::memory_order_relaxed);
  bool known = false;
  for (uint64_t i = count - std::min(count, DepartureBoard::kMost); i < count; ++i)
    known = known || covers(board_->entries[i % DepartureBoard::kMost], departure);
  if (!known) {
    DepartureBoard::Entry& entry = board_->entries[count % DepartureBoard::kMost];
    entry.channel = departure.channel;
    entry.launches = departure.launches;
    entry.rank = static_cast<uint32_t>(departure.rank);
    const std::string text = cut(departure.text, Departure::kText);
    entry.bytes = static_cast<uint32_t>(text.size());
    std::memcpy(entry.text, text.data(), entry.bytes);
    board_->count.store(count + 1, std::memory_order_release);
  }
  board_->lock.unlock();
  if (!known) bell_->ring();
  return Status::ok();
}

Status Departures::read(uint64_t number, Departure* departure) const {
  const DepartureBoard::Entry& entry = board_->entries[number % DepartureBoard::kMost];
  departure->channel = entry.channel;
  departure->launches = entry.launches;
  departure->rank = static_cast<int>(entry.rank);
  const uint32_t bytes = entry.bytes;
  if (bytes > Departure::kText || std::find(world_.begin(), world_.end(), departure->rank) == world_.end())
    return {Code::kPeerLost, "the board of left gradient plans has a text of " + std::to_string(bytes) + " bytes by rank " +
                                 std::to_string(departure->rank) + ": a rank of this host has damaged the shared memory"};
  departure->text.assign(entry.text, bytes);
  return Status::ok();
}

Status Departures::locked(uint64_t since, std::vector<Departure>* departures) const {
  const uint64_t count = board_->count.load(std::memory_order_relaxed);
  if (count - since > DepartureBoard::kMost)
    return {Code::kPeerLost, "more than " + std::to_string(DepartureBoard::kMost) +
                                 " gradient plans were left by other ranks before this one looked"};
  for (uint64_t i = since; i < count; ++i) {
    departures->emplace_back();
    RR_TRY(read(i, &departures->back()));
  }
  return Status::ok();
}

Status Departures::take(std::vector<Departure>* departures) {
  RR_TRY(board_->lock.lock(local_));
  const ShmLock::Held held(board_->lock);
  const Status status = locked(seen_, departures);
  seen_ = board_->count.load(std::memory_order_relaxed);
  return status;
}

uint64_t Departures::unaffected(int64_t channel) const {
#ifndef __SANITIZE_THREAD__
  std::atomic_thread_fence(std::memory_order_acquire);  // the caller's reads come before this one
#endif
  uint64_t least = UINT64_MAX;
  if (!news()) return least;
  std::vector<Departure> departures;
  if (!board_->lock.lock(local_).is_ok()) return 0;
  const ShmLock::Held held(board_->lock);
  const Status status = locked(seen_, &departures);
  for (const Departure& departure : departures)
    if (departure.channel == channel) least = std::min(least, departure.launches);
  return status.is_ok() ? least : 0;
}

}  // namespace ringreduce
