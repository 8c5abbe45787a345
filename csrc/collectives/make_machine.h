// Which machine executes which operation: the one place that knows.
#pragma once

#include <memory>

#include "collectives/machine.h"
#include "ops/output.h"
#include "ops/submission.h"

namespace ringreduce {

// The machine of one operation on CPU memory. `output` receives the result of allgather and
// alltoall. A barrier has none: it is done when the ranks have agreed on it.
std::unique_ptr<Machine> make_machine(Channel* channel, const Submission& submission, Output* output);

}  // namespace ringreduce
