// The engine's part in operations on the GPU, and what plans there need.
#include "collectives/kinds.h"
#include "engine/engine.h"

namespace ringreduce {

Status Engine::attach_gpu(std::shared_ptr<Device> device) {
  Lock lock(mutex_);
  RR_TRY(usable());
  return gpu_.attach(std::move(device));
}

Status Engine::submit_split(int set_id, OpRef* op) {
  *op = std::make_shared<Op>();
  (*op)->submission.kind = &kSplit;
  (*op)->submission.name = "process set " + std::to_string(set_id);
  Lock lock(mutex_);
  ProcessSet* world;
  RR_TRY(find(0, &world));
  if (ProcessSet* child = sets_.find(set_id)) (*op)->split_child = &child->gpu();
  return submit(*world, {*op});
}

Status Engine::gpu_info(int set_id, GpuInfo* info) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  std::shared_ptr<Device> device;
  RR_TRY(gpu_.get(&device));
  const Topology& topology = set->topology();
  const bool with_id = topology.rank == 0 && topology.size > 1 && set->gpu().path == GpuPath::kNccl;
  return make_info(*device, topology.host(), with_id, info);
}

Status Engine::gpu_path(int set_id, GpuPath* path, std::string* why_host) {
  Lock lock(mutex_);
  ProcessSet* set;
  RR_TRY(find(set_id, &set));
  if (!set->gpu().communicator) return {Code::kInvalid, "the process set has not run an operation on GPU tensors yet"};
  *path = set->gpu().path;
  *why_host = set->gpu().why_host;
  return Status::ok();
}

Status Engine::join(const Op& op, void* stream) {
  if (op.gpu->device->capturing(stream))
    return {Code::kUnsupported, op.title() + " was submitted before a CUDA graph captured this stream; synchronize before the capture"};
  {
    Lock lock(mutex_);
    if (broken() && !closing_) return broken_.because(op.title());
  }
  return op.gpu->device->wait_for(stream, op.gpu->finished);
}

}  // namespace ringreduce
