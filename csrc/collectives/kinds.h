// The collectives: the one place that knows which there are.
#pragma once

#include <string>

#include "collectives/machine.h"
#include "ops/submission.h"

namespace ringreduce {

// Null for a name that is none.
const Kind* find_kind(const std::string& name);

// Those that the core itself asks for.
extern const Kind &kAllreduce, &kBarrier, &kSplit;

}  // namespace ringreduce
