#include "gpu/nccl_collective.h"

#include <algorithm>
#include <cstring>

#include "collectives/allgather.h"

namespace ringreduce {

NcclCollective::NcclCollective(GpuSet* set, std::vector<GpuCall> calls)
    : set_(set), communicator_(*set->communicator), device_(*set->device), calls_(std::move(calls)) {}

Status NcclCollective::advance(bool* moved) {
  switch (step_) {
    case Step::kBegin:
      *moved = true;
      if (s().kind->rows) return gather_sizes(), Status::ok();
      return enqueue();
    case Step::kSizes:
      RR_TRY(sizes_machine_->advance(moved));
      if (!sizes_machine_->done()) return Status::ok();
      RR_TRY(take_sizes());
      return enqueue();
    case Step::kSettling: {
      bool settled = false;
      RR_TRY(communicator_.settled(&settled));
      if (!settled) return Status::ok();
      *moved = true;
      return finish();
    }
    case Step::kDone: break;
  }
  return Status::ok();
}

// The bytes of every rank, or what every rank sends to whom.
void NcclCollective::gather_sizes() {
  send_ = s().counts.empty() ? std::vector<int64_t>{static_cast<int64_t>(s().bytes())} : s().counts;
  sizes_machine_ = std::make_unique<Allgather>(set_->channel, reinterpret_cast<const char*>(send_.data()),
                                               send_.size() * sizeof(int64_t), &gathered_sizes_);
  step_ = Step::kSizes;
}

Status NcclCollective::take_sizes() {
  std::vector<int64_t> table(gathered_sizes_.bytes / sizeof(int64_t));
  std::memcpy(table.data(), gathered_sizes_.data.get(), gathered_sizes_.bytes);
  const Topology& topology = *set_->channel->topology;
  const bool table_of_pairs = !s().counts.empty();
  const size_t row = send_.size(), me = topology.rank;
  for (int rank = 0; rank < topology.size; ++rank)
    if (gathered_sizes_.counts[rank] != static_cast<int64_t>(row * sizeof(int64_t)))
      return {Code::kPeerLost, "rank " + std::to_string(topology.world[rank]) + " has sent " +
                                   std::to_string(gathered_sizes_.counts[rank]) + " bytes of sizes, not " +
                                   std::to_string(row * sizeof(int64_t))};
  sizes_.clear();
  for (size_t rank = 0; rank < table.size() / row; ++rank) sizes_.push_back(table[rank * row + (table_of_pairs ? me : 0)]);
  sizes_machine_.reset();
  Output output;
  output.counts = sizes_;
  return output.check_counts(topology.world);
}

Status NcclCollective::enqueue() {
  Device::Scope scope(device_);
  for (const GpuCall& call : calls_) RR_TRY(device_.wait_for(communicator_.stream().get(), call.gpu->ready));
  step_ = Step::kSettling;
  const Piece piece = s().pieces.empty() ? Piece{} : s().pieces[0];
  if (s().kind->rows) return enqueue_received();
  if (!s().kind->alike) return enqueue_reducescatter();
  if (s().kind->reduces) return enqueue_allreduce();
  return communicator_.broadcast(piece.in, piece.out, piece.bytes, s().root);
}

// Where the result of an output of these sizes is to be put; in the end it is brought to where it goes.
Status NcclCollective::result(std::vector<int64_t> sizes, char** to) {
  Output& output = *calls_[0].output;
  output.counts = std::move(sizes);
  return make_room(device_, communicator_.stream(), &output, &calls_[0].gpu->output, to);
}

Status NcclCollective::enqueue_received() {
  char* to;
  RR_TRY(result(sizes_, &to));
  const char* in = s().pieces[0].in;
  if (!s().counts.empty()) return communicator_.all_to_all(in, send_, to, sizes_);
  const bool even = std::all_of(sizes_.begin(), sizes_.end(), [this](int64_t size) { return size == sizes_[0]; });
  if (even) return communicator_.all_gather(in, to, sizes_[0]);
  return communicator_.all_gather_uneven(in, to, sizes_);
}

// All tensors of all calls, each on a line of its own so that the kernels can use wide accesses;
// *bytes of them and the gaps.
std::vector<PackItem> NcclCollective::items(bool outputs, size_t* bytes) const {
  std::vector<PackItem> items;
  const size_t size = info(s().dtype).size;
  uint64_t offset = 0;
  for (const GpuCall& call : calls_)
    for (const Piece& piece : call.submission->pieces) {
      items.push_back({outputs ? piece.out : const_cast<char*>(piece.in), offset, piece.bytes / size});
      offset += round_up(piece.bytes, kLine) / size;
    }
  *bytes = offset * size;
  return items;
}

Status NcclCollective::enqueue_allreduce() {
  size_t bytes = 0;
  const std::vector<PackItem> inputs = items(false, &bytes);
  if (!bytes) return Status::ok();
  const char* in = s().pieces[0].in;
  char* out = s().pieces[0].out;
  const bool packed = inputs.size() > 1;
  if (!packed) bytes = s().pieces[0].bytes;
  void* stream = communicator_.stream().get();
  const bool wanted = s().kind->root != Kind::Root::kTo || s().root == set_->channel->topology->rank;
  if (!wanted && !packed) RR_TRY(scratch(bytes, &out));
  if (packed) {
    char* buffer;
    RR_TRY(scratch(bytes, &buffer));
    const PackArgs args{buffer, s().dtype, s().dtype, inputs.data(), static_cast<int>(inputs.size()), 1.0};
    RR_TRY(device_.check(device_.cuda().pack(&args, stream), "packing tensors"));
    in = out = buffer;
  }
  std::function<Status()> unpack = [] { return Status::ok(); };
  if (packed && wanted)
    unpack = [this, buffer = out, stream] {
      size_t all = 0;
      const std::vector<PackItem> outputs = items(true, &all);
      const PackArgs args{buffer, s().dtype, s().dtype, outputs.data(), static_cast<int>(outputs.size()), 1.0};
      return device_.check(device_.cuda().unpack(&args, stream), "unpacking tensors");
    };
  const size_t count = bytes / info(s().dtype).size;
  NcclReduction how;
  const Scale scale{s().prescale, s().postscale};
  if (!nccl_reduction(s().dtype, s().reduction(), s().averages(), scale, communicator_.size(), &how)) {
    RR_TRY(reduce_gathered(in, bytes, {0, bytes}, out));
    after_ = [this, inner = std::move(after_), unpack] {
      RR_TRY(inner());
      return unpack();
    };
    return Status::ok();
  }
  after_ = [this, out, count, how, unpack] {
    RR_TRY(scaled(out, out, count, {1.0, how.scale.post}));
    return unpack();
  };
  if (how.scale.pre != 1.0) {
    RR_TRY(scaled(out, in, count, {how.scale.pre, 1.0}));
    in = out;
  }
  return communicator_.all_reduce(in, out, count * how.factor, how.dtype, how.op);
}

// Every rank's block, padded to the largest where they differ.
Status NcclCollective::enqueue_reducescatter() {
  const size_t size = info(s().dtype).size, ranks = s().counts.size(), me = set_->channel->topology->rank;
  const size_t largest = *std::max_element(s().counts.begin(), s().counts.end()), bytes = s().pieces[0].bytes;
  if (!bytes) return Status::ok();
  const char* in = s().pieces[0].in;
  char* out;
  RR_TRY(result({s().counts[me]}, &out));
  size_t begin = 0;
  for (size_t i = 0; i < me; ++i) begin += s().counts[i];
  const size_t own = s().counts[me];
  NcclReduction how;
  const Scale scale{s().prescale, s().postscale};
  if (!nccl_reduction(s().dtype, s().reduction(), s().averages(), scale, communicator_.size(), &how))
    return reduce_gathered(in, bytes, {begin, begin + own}, out);
  char* reduced = out;
  void* stream = communicator_.stream().get();
  const bool even = bytes == largest * ranks;
  if (!even || how.scale.pre != 1.0) {
    char* padded;
    RR_TRY(scratch(largest * ranks, &padded));
    std::vector<PackItem> blocks;
    size_t at = 0;
    for (size_t i = 0; i < ranks; ++i) {
      blocks.push_back({const_cast<char*>(in) + at, i * largest / size, s().counts[i] / size});
      at += s().counts[i];
    }
    const PackArgs args{padded, s().dtype, s().dtype, blocks.data(), static_cast<int>(ranks), 1.0};
    RR_TRY(device_.check(device_.cuda().pack(&args, stream), "packing blocks"));
    RR_TRY(scaled(padded, padded, largest * ranks / size, {how.scale.pre, 1.0}));
    in = padded;
  }
  if (!even) RR_TRY(scratch(largest, &reduced));
  after_ = [this, reduced, out, own, size, how, stream] {
    RR_TRY(scaled(reduced, reduced, own / size, {1.0, how.scale.post}));
    return device_.copy(out, reduced, own, stream);
  };
  return communicator_.reduce_scatter(in, reduced, largest / size * how.factor, how.dtype, how.op);
}

// For reductions that NCCL lacks: `own` of the result, from everybody's inputs.
Status NcclCollective::reduce_gathered(const void* in, size_t bytes, Range own, char* out) {
  const int ranks = communicator_.size();
  char* all;
  RR_TRY(scratch(bytes * ranks, &all));
  after_ = [this, all, bytes, own, out, ranks] {
    std::vector<const void*> sources;
    for (int i = 0; i < ranks; ++i) sources.push_back(all + i * bytes + own.begin);
    return own.bytes() ? reduce(out, sources, own.bytes() / info(s().dtype).size) : Status::ok();
  };
  return communicator_.all_gather(in, all, bytes);
}

// In rounds of as many sources as a launch takes, the sum so far being the first of the next. These are
// whole numbers, bool and complex ones: none has more digits within a launch than in memory.
Status NcclCollective::reduce(void* dst, std::vector<const void*> sources, size_t count) {
  constexpr size_t kMost = DeviceReduceArgs::kReduceSources;
  Scale scale = s().scale(communicator_.size());
  if (sources.size() > kMost && scale.pre != 1.0) {
    for (const void* source : sources) RR_TRY(scaled(const_cast<void*>(source), source, count, {scale.pre, 1.0}));
    scale.pre = 1.0;
  }
  for (size_t done = 0; done < sources.size();) {
    std::vector<const void*> round;
    if (done) round.push_back(dst);
    while (round.size() < kMost && done < sources.size()) round.push_back(sources[done++]);
    const double post = done == sources.size() ? scale.post : 1.0;
    const DeviceReduceArgs args{dst, round.data(), static_cast<int>(round.size()), count, s().dtype, s().reduction(), {scale.pre, post}};
    RR_TRY(device_.check(device_.cuda().reduce(&args, communicator_.stream().get()), "reducing"));
  }
  return Status::ok();
}

// dst = scale * src, by the reduction of one source.
Status NcclCollective::scaled(void* dst, const void* src, size_t count, Scale scale) {
  if (scale.is_identity() || !count) return Status::ok();
  const DeviceReduceArgs args{dst, &src, 1, count, s().dtype, Reduction::kSum, scale};
  return device_.check(device_.cuda().reduce(&args, communicator_.stream().get()), "scaling");
}

// Freed on the stream, after what is enqueued by then.
Status NcclCollective::scratch(size_t bytes, char** memory) {
  scratch_.emplace_back();
  RR_TRY(device_.allocate(bytes, communicator_.stream(), &scratch_.back()));
  *memory = scratch_.back().get();
  return Status::ok();
}

Status NcclCollective::finish() {
  Device::Scope scope(device_);
  if (after_) RR_TRY(after_());
  if (!s().kind->alike) RR_TRY(hand_out(device_, communicator_.stream(), *calls_[0].output, &calls_[0].gpu->output));
  after_ = nullptr;
  scratch_.clear();
  Event finished;
  RR_TRY(device_.record(communicator_.stream().get(), &finished));
  for (const GpuCall& call : calls_) {
    call.gpu->stream = communicator_.stream();
    call.gpu->finished = finished;
  }
  communicator_.watch(finished, calls_[0].title, nullptr);
  step_ = Step::kDone;
  return Status::ok();
}

std::string NcclCollective::where() const {
  return step_ == Step::kSizes ? "exchanging sizes" : "waiting for NCCL to enqueue it";
}

}  // namespace ringreduce
