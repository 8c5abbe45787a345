#include "gpu/host_collective.h"

#include "collectives/make_machine.h"

namespace ringreduce {

HostCollective::HostCollective(GpuSet* set, std::vector<GpuCall> calls)
    : set_(set), device_(*set->device), stream_(set->communicator->stream().get()), calls_(std::move(calls)),
      submission_(*calls_[0].submission) {
  memory_->received.source = [device = set->device](size_t bytes, std::shared_ptr<char>* memory) {
    return device->pinned(bytes, memory);
  };
}

Status HostCollective::advance(bool* moved) {
  switch (step_) {
    case Step::kBegin: *moved = true; return copy_in();
    case Step::kIn: {
      bool reached = false;
      RR_TRY(device_.reached(copied_, &reached));
      if (!reached) return Status::ok();
      *moved = true;
      start();
      return Status::ok();
    }
    case Step::kRunning:
      if (!machine_->done()) RR_TRY(machine_->advance(moved));
      return machine_->done() ? copy_out() : Status::ok();
    case Step::kDone: break;
  }
  return Status::ok();
}

Status HostCollective::copy_in() {
  Device::Scope scope(device_);
  size_t bytes = 0, results = 0;
  const int me = set_->channel->topology->rank;
  for (const GpuCall& call : calls_) bytes += call.submission->bytes();
  if (submission_.kind == Kind::kReducescatter) results = submission_.counts[me];
  RR_TRY(device_.pinned(bytes, &memory_->in));
  if (results) RR_TRY(device_.pinned(results, &memory_->out));
  else memory_->out = memory_->in;
  submission_.pieces = {{memory_->in.get(), memory_->out.get(), bytes}};
  char* at = memory_->in.get();
  for (const GpuCall& call : calls_) {
    RR_TRY(device_.wait_for(stream_, call.gpu->ready));
    for (const Piece& piece : call.submission->pieces) {
      RR_TRY(device_.copy(at, piece.in, piece.bytes, stream_));
      at += piece.bytes;
    }
  }
  step_ = Step::kIn;
  return device_.record(stream_, &copied_);
}

void HostCollective::start() {
  machine_ = make_machine(set_->channel, submission_, &memory_->received);
  step_ = Step::kRunning;
}

Status HostCollective::copy_out() {
  Device::Scope scope(device_);
  GpuOp& first = *calls_[0].gpu;
  if (submission_.kind == Kind::kAllgather || submission_.kind == Kind::kAlltoall) {
    calls_[0].output->counts = memory_->received.counts;
    calls_[0].output->bytes = memory_->received.bytes;
    RR_TRY(device_.allocate(memory_->received.bytes, set_->communicator->stream(), &first.output));
    RR_TRY(device_.copy(first.output.get(), memory_->received.data.get(), memory_->received.bytes, stream_));
  } else if (submission_.kind == Kind::kReducescatter) {
    const Piece& piece = calls_[0].submission->pieces[0];
    RR_TRY(device_.copy(piece.out, memory_->out.get(), submission_.counts[set_->channel->topology->rank], stream_));
  } else {
    const char* at = memory_->out.get();
    for (const GpuCall& call : calls_)
      for (const Piece& piece : call.submission->pieces) {
        RR_TRY(device_.copy(piece.out, at, piece.bytes, stream_));
        at += piece.bytes;
      }
  }
  Event finished;
  RR_TRY(device_.record(stream_, &finished));
  for (const GpuCall& call : calls_) {
    call.gpu->stream = set_->communicator->stream();
    call.gpu->finished = finished;
  }
  set_->communicator->watch(finished, calls_[0].title, memory_);
  step_ = Step::kDone;
  return Status::ok();
}

std::string HostCollective::where() const {
  return step_ == Step::kRunning ? "through host memory: " + machine_->where() : "copying to host memory";
}

}  // namespace ringreduce
