// What a failure means for one operation or message.
#pragma once

#include <exception>

#include "common/status.h"

namespace ringreduce {

// Without the title where there is no memory for it: then that is what has failed.
template <typename Titled>
Status because_of(const Status& status, const Titled& one) noexcept {
  try {
    return status.because(one.title());
  } catch (const std::exception&) {
    return status;
  }
}

}  // namespace ringreduce
