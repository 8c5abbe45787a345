#include "gpu/collective.h"

#include <numeric>

#include "gpu/host_collective.h"
#include "gpu/nccl_collective.h"
#include "gpu/rendezvous.h"

namespace ringreduce {

namespace {

// The first operation of a set makes its communicator before it runs.
class GpuCollective : public Machine {
 public:
  GpuCollective(GpuSet* set, std::vector<GpuCall> calls) : set_(set), calls_(std::move(calls)) {
    if (set_->communicator) start();
    else rendezvous_ = std::make_unique<Rendezvous>(set_);
  }

  Status advance(bool* moved) override {
    if (!rendezvous_) return inner_->advance(moved);
    RR_TRY(rendezvous_->advance(moved));
    if (!rendezvous_->done()) return Status::ok();
    rendezvous_.reset();
    start();
    return Status::ok();
  }
  bool done() const override { return inner_ && inner_->done(); }
  bool on_net() const override { return rendezvous_ ? rendezvous_->on_net() : inner_->on_net(); }
  std::string where() const override { return rendezvous_ ? rendezvous_->where() : inner_->where(); }

 private:
  void start() {
    if (set_->path == GpuPath::kNccl) inner_ = std::make_unique<NcclCollective>(set_, std::move(calls_));
    else inner_ = std::make_unique<HostCollective>(set_, std::move(calls_));
  }

  GpuSet* set_;
  std::vector<GpuCall> calls_;
  std::unique_ptr<Rendezvous> rendezvous_;
  std::unique_ptr<Machine> inner_;
};

}  // namespace

Status make_room(Device& device, const GpuStream& stream, Output* output, std::shared_ptr<char>* own, char** to) {
  output->bytes = std::accumulate(output->counts.begin(), output->counts.end(), size_t{0});
  const bool direct = output->into.size() == 1 && output->into[0].bytes == output->bytes;
  if (!direct) RR_TRY(device.allocate(output->bytes, stream, own));
  *to = direct ? output->into[0].data : own->get();
  return Status::ok();
}

// What does not fit, Output::finish() will say.
Status hand_out(Device& device, const GpuStream& stream, const Output& output, std::shared_ptr<char>* own) {
  if (output.into.empty() || !*own) return Status::ok();
  size_t at = 0;
  for (const Span& span : output.into) {
    if (at + span.bytes > output.bytes) break;
    RR_TRY(device.copy(span.data, own->get() + at, span.bytes, stream.get()));
    at += span.bytes;
  }
  own->reset();
  return Status::ok();
}

std::unique_ptr<Machine> make_gpu_machine(GpuSet* set, std::vector<GpuCall> calls) {
  return std::make_unique<GpuCollective>(set, std::move(calls));
}

}  // namespace ringreduce
