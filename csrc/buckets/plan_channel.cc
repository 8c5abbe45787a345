#include "buckets/plan_channel.h"

#include <algorithm>

namespace ringreduce {

// A number, a colon, and a digit for each slot.
std::string PlanChannel::Offer::text() const { return std::to_string(serial) + ":" + used.to_string(); }

Status PlanChannel::Offer::read(const std::string& text, Offer* offer) {
  const size_t colon = text.find(':');
  const bool digits = colon != std::string::npos && colon > 0 && colon < 17 &&
                      text.find_first_not_of("0123456789") == colon && text.size() == colon + 1 + kEnd &&
                      text.find_first_not_of("01", colon + 1) == std::string::npos;
  if (digits) offer->serial = std::stoll(text.substr(0, colon));
  if (!digits || offer->serial > kMostSerial) return {Code::kInvalid, "'" + text.substr(0, 40) + "' is no offer of a plan's channel"};
  offer->used = std::bitset<kEnd>(text, colon + 1);
  return Status::ok();
}

Status PlanChannel::agree(const std::vector<std::string>& offers, uint64_t start, int64_t* channel) {
  Offer all;
  for (size_t rank = 0; rank < offers.size(); ++rank) {
    Offer one;
    const Status status = Offer::read(offers[rank], &one);
    if (!status.is_ok()) return status.because("set rank " + std::to_string(rank));
    all.serial = std::max(all.serial, one.serial);
    all.used |= one.used;
  }
  for (int i = 0; i < kEnd - kFirst; ++i) {
    const int slot = kFirst + static_cast<int>((start + i) % (kEnd - kFirst));
    if (all.used[slot]) continue;
    *channel = (all.serial + 1) << kSlotBits | slot;
    return Status::ok();
  }
  return {Code::kInvalid, "too many gradient plans at a time (" + std::to_string(kEnd - kFirst) +
                              "); close optimizers that are no longer used"};
}

}  // namespace ringreduce
