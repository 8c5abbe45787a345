#include "gpu/host_collective.h"

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
  size_t bytes = 0;
  for (const GpuCall& call : calls_) bytes += call.submission->bytes();
  RR_TRY(device_.pinned(bytes, &memory_->in));
  const bool wanted = submission_.kind->root != Kind::Root::kTo || submission_.root == set_->channel->topology->rank;
  submission_.pieces = {{memory_->in.get(), wanted ? memory_->in.get() : nullptr, bytes}};
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
  machine_ = submission_.kind->machine(set_->channel, submission_, &memory_->received);
  step_ = Step::kRunning;
}

Status HostCollective::copy_out() {
  Device::Scope scope(device_);
  GpuOp& first = *calls_[0].gpu;
  if (submission_.kind->alike) {
    const char* at = memory_->in.get();
    for (const GpuCall& call : calls_)
      for (const Piece& piece : call.submission->pieces) {
        if (piece.out) RR_TRY(device_.copy(piece.out, at, piece.bytes, stream_));
        at += piece.bytes;
      }
  } else {
    Output& output = *calls_[0].output;
    output.counts = memory_->received.counts;
    char* to;
    RR_TRY(make_room(device_, set_->communicator->stream(), &output, &first.output, &to));
    RR_TRY(device_.copy(to, memory_->received.data.get(), output.bytes, stream_));
    RR_TRY(hand_out(device_, set_->communicator->stream(), output, &first.output));
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
