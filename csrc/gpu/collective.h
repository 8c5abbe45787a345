// A collective on GPU tensors as a state machine of the engine. It is done once everything is
// enqueued on the GPU: from then on streams order what follows, and no host thread waits.
//
//   agreed on ─► (first of its set: rendezvous, a communicator is made)
//             ─► NcclCollective   NCCL and kernels on the communicator's stream
//             or HostCollective   GPU ─► pinned memory ─► the CPU's machine ─► GPU
//             ─► `finished` is recorded
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/machine.h"
#include "ops/output.h"
#include "ops/submission.h"
#include "gpu/communicator.h"

namespace ringreduce {

// What an operation has on the GPU.
struct GpuOp {
  std::shared_ptr<Device> device;
  Event ready;                   // on the caller's stream: the tensors have their values
  Event finished;                // set once enqueued
  GpuStream stream;              // on which it runs; set once enqueued
  std::shared_ptr<char> output;  // of a size of its own
};

// One operation to execute; several allreduces of one dtype and scale may be fused.
struct GpuCall {
  const Submission* submission;
  Output* output;   // its counts are set
  std::shared_ptr<GpuOp> gpu;
  std::string title;
};

// The GPU side of one process set.
struct GpuSet {
  std::shared_ptr<Device> device;
  Channel* channel = nullptr;
  std::shared_ptr<Communicator> communicator;  // null before the first operation
  int64_t patience_ns = 0;                     // for NCCL to make one: leaves time to go another way
  GpuPath path = GpuPath::kNccl;
  std::string why_host;                        // why it isn't kNccl
};

// Output's allocate() and finish() on the GPU: where a result of `output->counts` is to be put, the caller's
// memory or `own`, and then, enqueued, from there to the caller's pieces.
Status make_room(Device& device, const GpuStream& stream, Output* output, std::shared_ptr<char>* own, char** to);
Status hand_out(Device& device, const GpuStream& stream, const Output& output, std::shared_ptr<char>* own);

std::unique_ptr<Machine> make_gpu_machine(GpuSet* set, std::vector<GpuCall> calls);

}  // namespace ringreduce
