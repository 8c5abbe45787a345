#include "liveness/status_page.h"

#include <algorithm>
#include <exception>

#include <unistd.h>

#include "common/clock.h"
#include "common/show.h"

namespace ringreduce {

namespace {

std::atomic<uint64_t> serials{0};

constexpr int kTries = 100;  // of a reader, whom the owner may overtake

// In whole words: no half of one is ever seen.
struct PageWords {
  uint64_t word[StatusPage::kWords];
};

}  // namespace

template <size_t N>
void PageText<N>::set(const std::string& text) {
  std::memset(bytes, 0, N);
  std::memcpy(bytes, text.data(), cut_at(text, N - 1));  // without memory of its own: there may be none
}
template struct PageText<144>;
template struct PageText<512>;
template struct PageText<1024>;

// Words are stored with release and loaded with acquire: whoever sees a word of a later write sees the version that
// was raised before that write began.
bool read_status(const StatusPage& page, StatusReading* reading) {
  for (int i = 0; i < kTries; ++i) {
    const uint64_t version = page.version.load(std::memory_order_acquire);
    if (!version) return false;
    PageWords words;
    for (size_t k = 0; k < StatusPage::kWords; ++k) words.word[k] = page.copies[version % 2][k].load(std::memory_order_acquire);
    if (page.version.load(std::memory_order_acquire) != version) continue;
    std::memcpy(static_cast<void*>(static_cast<StatusRecord*>(reading)), &words, sizeof(StatusRecord));
    reading->version = version;
    reading->steps = page.steps.load(std::memory_order_relaxed);
    reading->submitters = page.submitters.load(std::memory_order_relaxed);
    return reading->state >= RankState::kRunning && reading->state <= RankState::kGone;
  }
  return false;
}

OwnStatus::OwnStatus(StatusPage* page, int rank) : page_(page), serial_(++serials) {
  record_.rank = rank;
  record_.pid = getpid();
  state(RankState::kRunning);
}

void OwnStatus::state(RankState state, const std::string& why) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (state != record_.state) record_.since_ns = now_ns();
  record_.state = state;
  if (!why.empty() && !record_.failure.bytes[0]) record_.failure.set(why);
  publish();
}

void OwnStatus::state(RankState state, const Status& why) noexcept {
  try {
    this->state(state, why.text());
  } catch (const std::exception&) {
    this->state(state, std::string());  // there is no memory for the text
  }
}

void OwnStatus::verdict(const std::string& text) {
  std::lock_guard<std::mutex> lock(mutex_);
  record_.verdict.set(text);
  record_.verdict_ns = now_ns();
  publish();
}

// Milliseconds, and 20 bits of the rank.
bool OwnStatus::claim_report(StatusPage* first, ReportKind kind, int64_t holds_ns, Claim* claim) {
  constexpr int kRankBits = 20;
  const uint64_t now_ms = static_cast<uint64_t>(now_ns() / kMillisecond);
  std::atomic<uint64_t>& shared = first->claims[static_cast<int>(kind)];
  uint64_t known = shared.load(std::memory_order_acquire);
  const uint64_t mine = now_ms << kRankBits | static_cast<uint64_t>(record_.rank);
  do {
    *claim = {static_cast<int>(known & ((1u << kRankBits) - 1)), static_cast<int64_t>(known >> kRankBits) * kMillisecond};
    if (known && now_ms < (known >> kRankBits) + static_cast<uint64_t>(holds_ns / kMillisecond)) return false;
  } while (!shared.compare_exchange_weak(known, mine, std::memory_order_acq_rel));
  return true;
}

uint64_t OwnStatus::begin_wait(const WaitRecord& wait, const std::string& last) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiters_.push_back({++tickets_, wait});
  record_.last.set(last);
  publish();
  return tickets_;
}

void OwnStatus::place(uint64_t ticket, const std::string& place) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (Waiter& waiter : waiters_)
    if (waiter.ticket == ticket) waiter.wait.place.set(place);
  publish();
}

void OwnStatus::end_wait(uint64_t ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto ended = [ticket](const Waiter& waiter) { return waiter.ticket == ticket; };
  waiters_.erase(std::remove_if(waiters_.begin(), waiters_.end(), ended), waiters_.end());
  publish();
}

void OwnStatus::publish() {
  record_.blocked = static_cast<uint32_t>(waiters_.size());
  for (size_t i = 0; i < StatusRecord::kWaits; ++i) record_.waits[i] = i < waiters_.size() ? waiters_[i].wait : WaitRecord();
  PageWords words{};
  std::memcpy(&words, &record_, sizeof record_);
  const uint64_t version = page_->version.load(std::memory_order_relaxed) + 1;
  for (size_t k = 0; k < StatusPage::kWords; ++k) page_->copies[version % 2][k].store(words.word[k], std::memory_order_release);
  page_->version.store(version, std::memory_order_release);
}

}  // namespace ringreduce
