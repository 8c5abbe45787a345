// What nccl.cc and nccl_split.cc share: the communicators that exist.
#pragma once

#include <memory>

#include "comm.h"
#include "control.h"

namespace ringreduce::doubles {

// Enters a call on a communicator: counts it, and finds out that it may be made now.
int enter_call(const char* function, NcclComm handle, void* stream, std::shared_ptr<Comm>* comm);
NcclComm add_comm(std::shared_ptr<Comm> comm);
bool valid(const NcclConfig* config);

}  // namespace ringreduce::doubles
