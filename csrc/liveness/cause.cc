#include "liveness/cause.h"

#include <algorithm>
#include <cstring>

#include "common/show.h"

namespace ringreduce {

bool VerdictBoard::Slot::put(const Cause& cause) {
  uint32_t empty = kEmpty;
  if (!state_.compare_exchange_strong(empty, kWriting, std::memory_order_acquire)) return false;
  rank_ = cause.rank;
  ended_ = cause.ended;
  certainty_ = cause.certainty;
  bytes_ = static_cast<uint32_t>(cut_at(cause.text, Cause::kText));
  std::memcpy(text_, cause.text.data(), bytes_);
  state_.store(kThere, std::memory_order_release);
  return true;
}

bool VerdictBoard::Slot::get(Cause* cause) const {
  if (!is_there()) return false;
  cause->rank = rank_;
  cause->ended = ended_ != 0;
  cause->certainty = certainty_;
  cause->text.assign(text_, std::min<size_t>(bytes_, Cause::kText));
  return true;
}

}  // namespace ringreduce
