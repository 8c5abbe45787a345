#include "collectives/ways.h"

namespace ringreduce {

// Whoever had to wait for a core has taken longer for no fault of the way, so what counts is the least, of late.
void Ways::Record::slowest(uint32_t last) {
  if (!last) return;
  uint32_t& usual = usual_[last_read_];
  usual = usual ? std::min(last, usual + usual / 16 + 1) : last;
}

bool Ways::Record::word() {
  const uint32_t turn = ++turn_;
  if (turn < kFirst) return turn / 2 % 2;
  const bool quicker = usual_[true] && usual_[true] < usual_[false];  // never read: it cannot be
  return turn % kAgain ? quicker : !quicker;
}

}  // namespace ringreduce
