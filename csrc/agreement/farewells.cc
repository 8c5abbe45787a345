#include "agreement/farewells.h"

#include <algorithm>
#include <cstring>

#include "common/show.h"

namespace ringreduce {

namespace {

using Words = FarewellBoard::Words;

void put(Words* words, const std::string& text) {
  const std::string said = cut(text, Words::kMost);
  std::memcpy(words->text, said.data(), said.size());
  words->bytes.store(static_cast<uint32_t>(said.size()), std::memory_order_release);
}

std::string get(const Words& words) {
  return {words.text, std::min<size_t>(words.bytes.load(std::memory_order_acquire), Words::kMost)};
}

}  // namespace

void Farewells::say(const std::string& why) {
  put(&board_->words[topology_->local()], why);
  board_->gone[topology_->local()].store(1, std::memory_order_release);
}

void Farewells::hear(int world_rank, const std::string& why) {
  if (!why.empty() && !board_->spoke_elsewhere.load(std::memory_order_relaxed)) {
    put(&board_->words_elsewhere, why);
    board_->spoke_elsewhere.store(static_cast<uint32_t>(world_rank) + 1, std::memory_order_release);
  }
  if (world_rank < FarewellBoard::kMostRanks)
    board_->elsewhere[world_rank / 64].fetch_or(uint64_t{1} << world_rank % 64, std::memory_order_release);
  uint32_t nobody = 0;
  board_->first_elsewhere.compare_exchange_strong(nobody, static_cast<uint32_t>(world_rank) + 1, std::memory_order_release);
}

std::vector<int> Farewells::here() const {
  std::vector<int> ranks;
  for (int i = 0; i < topology_->local_size(); ++i)
    if (board_->gone[i].load(std::memory_order_acquire)) ranks.push_back(topology_->world[topology_->local_ranks()[i]]);
  return ranks;
}

std::vector<int> Farewells::ranks() const {
  std::vector<int> ranks = here();
  const auto add = [&ranks](int rank) {
    if (std::find(ranks.begin(), ranks.end(), rank) == ranks.end()) ranks.push_back(rank);
  };
  if (const uint32_t first = board_->first_elsewhere.load(std::memory_order_acquire)) {
    add(static_cast<int>(first) - 1);
    for (int rank : topology_->world)
      if (rank < FarewellBoard::kMostRanks && board_->elsewhere[rank / 64].load(std::memory_order_acquire) >> rank % 64 & 1) add(rank);
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

std::string Farewells::why(int world_rank) const {
  for (int i = 0; i < topology_->local_size(); ++i)
    if (topology_->world[topology_->local_ranks()[i]] == world_rank) return get(board_->words[i]);
  const uint32_t spoke = board_->spoke_elsewhere.load(std::memory_order_acquire);
  return spoke == static_cast<uint32_t>(world_rank) + 1 ? get(board_->words_elsewhere) : "";
}

bool Farewells::failed(const std::vector<int>& world_ranks) const {
  return std::any_of(world_ranks.begin(), world_ranks.end(), [this](int rank) { return !why(rank).empty(); });
}

Status Farewells::named(const Status& status) const {
  const std::vector<int> gone = ranks();
  const auto at = std::find_if(gone.begin(), gone.end(), [this](int rank) { return !why(rank).empty(); });
  if (status.code() != Code::kPeerLost || gone.empty()) return status;
  return status.with(lost_rank(at == gone.end() ? gone[0] : *at, processes_ ? *processes_ : std::vector<Process>()));
}

std::string Farewells::text(const std::vector<int>& world_ranks) const {
  std::string text = show_ranks(world_ranks) + (world_ranks.size() == 1 ? " has shut down" : " have shut down");
  for (int rank : world_ranks) {
    const std::string said = why(rank);
    if (said.empty()) continue;
    return text + (world_ranks.size() == 1 ? "" : ", rank " + std::to_string(rank)) + " after " + said;
  }
  return text;
}

}  // namespace ringreduce
