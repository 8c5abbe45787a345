#include "collectives/single_copy.h"

#include <algorithm>

#include "common/clock.h"
#include "common/pages.h"
#include "kernels/kernels.h"

namespace ringreduce {

namespace {

// Of one read. A rank looks at other things in between.
constexpr size_t kPiece = 1 << 20;
// What is read of all others to be reduced together: it should stay in a core's cache.
constexpr size_t kScratch = 256 << 10;
constexpr size_t kLeastPiece = 16 << 10;
// What a rank reads of another one, at least: to have met takes longer than staging less.
constexpr size_t kLeastRead = 64 << 10;

size_t reduce_piece_bytes(int ranks) {
  return std::max(kLeastPiece, kScratch / std::max(1, ranks - 1) / kLine * kLine);
}

}  // namespace

// In a rank's staging slot.
struct SingleCopy::Published {
  const char* in;
  const char* result;  // null: nobody reads it
  bool offered;
  bool overwrites;     // its input, with the result
  bool word;           // of the first rank: how the next one goes
  uint32_t last;       // what the last one has taken
  int64_t counts[];    // bytes for each rank, where the ranks tell each other
};

void Reads::add(std::vector<Read>* reads, const Read& read) {
  if (read.bytes) reads->push_back(read);
}

void Reads::begin_with(int rank) {
  for (std::vector<Read>* reads : {&inputs, &results}) {
    const auto next = std::find_if(reads->begin(), reads->end(), [&](const Read& read) { return read.from >= rank; });
    std::rotate(reads->begin(), next, reads->end());
  }
}

bool SingleCopy::suits(const Channel& channel, const Submission& submission) {
  return channel.peers && channel.topology->host_count() == 1 && channel.topology->size > 1 && submission.pieces.size() == 1;
}

SingleCopy::SingleCopy(Channel* channel, const Submission& submission, Output* output, Plan plan, Staged staged)
    : channel_(channel),
      topology_(*channel->topology),
      submission_(submission),
      output_(output),
      plan_(plan),
      make_staged_(staged),
      any_size_(channel->read_any_size),
      record_(channel->ways->of(submission.kind->number, submission.bytes())) {
  // What is known to be too small needs no meeting.
  if (!tells_counts()) reads_ = plan_(topology_, submission_, output_, {});
  if (!tells_counts() && !is_enough()) stage();
  else step_ = channel_->stream.reserve(1);
}

SingleCopy::~SingleCopy() {
  if (timed_ && done()) record_.took(!staged_, now_ns() - begun_ns_);
}

void SingleCopy::stage() {
  staged_ = make_staged_(channel_, submission_, output_, counts_);
}

bool SingleCopy::is_enough() const { return reads_.largest >= (any_size_ ? 1 : kLeastRead); }

bool SingleCopy::done() const {
  return staged_ ? staged_->done() : phase_ == Phase::kDrained && channel_->stream.drained(step_) && !channel_->stream.refused(step_);
}

const SingleCopy::Published* SingleCopy::published(int local) const {
  return reinterpret_cast<const Published*>(channel_->stream.slot(step_, local));
}

Status SingleCopy::advance(bool* moved) {
  if (staged_) return staged_->advance(moved);
  Staging& stream = channel_->stream;
  // Before anything is made of what was read. The deadline or the peers' end will say why.
  if (stream.broken_off()) return Status::ok();
  switch (phase_) {
    case Phase::kPublish:
      if (!stream.vacant(step_)) return Status::ok();
      publish();
      phase_ = Phase::kMeet;
      break;
    case Phase::kMeet:
      if (!stream.filled(step_)) return Status::ok();
      RR_TRY(meet());
      break;
    case Phase::kInputs:
      if (next_ < reads_.inputs.size() && !stream.refused(step_)) RR_TRY(read_on(reads_.inputs));
      else settle();
      break;
    case Phase::kResults:
      if (!stream.settled(step_)) return Status::ok();
      if (next_ < reads_.results.size() && !stream.refused(step_)) RR_TRY(read_on(reads_.results));
      else drain();
      break;
    case Phase::kDrained:
      if (!stream.drained(step_) || !stream.refused(step_)) return Status::ok();
      stage();
      break;
  }
  *moved = true;
  return Status::ok();
}

void SingleCopy::publish() {
  begun_ns_ = now_ns();
  auto* mine = reinterpret_cast<Published*>(channel_->stream.slot(step_, topology_.local()));
  const Piece& piece = submission_.pieces[0];
  mine->in = piece.in;
  mine->result = piece.out;
  mine->offered = offers();
  mine->overwrites = submission_.kind->reduces && piece.in == piece.out;
  mine->word = record_.word();
  mine->last = record_.last();
  std::copy(submission_.counts.begin(), submission_.counts.end(), mine->counts);
  channel_->stream.fill(step_);
}

// Where a rank reduces in place, nothing can be staged any more once reading has begun, and which ranks do so is not
// known yet. To try takes some microseconds.
bool SingleCopy::offers() const {
  if (!any_size_ && !record_.reads()) return false;
  const Piece& piece = submission_.pieces[0];
  return !submission_.kind->reduces || channel_->peers->readable(piece.in, piece.bytes);
}

Status SingleCopy::meet() {
  const int n = topology_.size;
  bool offered = true, sane = true;
  uint32_t slowest = 0;
  for (int i = 0; i < n; ++i) {
    offered = offered && published(i)->offered;
    overwritten_ = overwritten_ || published(i)->overwrites;
    slowest = std::max(slowest, published(i)->last);
  }
  record_.slowest(slowest);
  record_.hear(published(0)->word);
  if (tells_counts()) {
    for (int from = 0; from < n; ++from)
      for (int to = 0; to < n; ++to) {
        const int64_t count = published(from)->counts[to];
        sane = sane && count >= 0 && count <= kMostBytes / n;
        counts_.push_back(static_cast<size_t>(count));
      }
    if (sane) reads_ = plan_(topology_, submission_, output_, counts_);
  }
  timed_ = is_enough();
  // Counts that cannot be are the staged machine's to report.
  if (!sane || !offered || !is_enough()) {
    channel_->stream.drain_unsettled(step_);
    return stage(), Status::ok();
  }
  result_ = submission_.pieces[0].out;
  if (!submission_.kind->alike) {
    RR_TRY(output_->check_counts(topology_.world));
    RR_TRY(output_->allocate());
    result_ = output_->data.get();
  }
  phase_ = Phase::kInputs;
  return Status::ok();
}

void SingleCopy::settle() {
  if (reads_.results.empty()) return drain();
  channel_->stream.settle(step_);
  next_ = 0;
  phase_ = Phase::kResults;
}

void SingleCopy::drain() {
  if (reads_.results.empty()) channel_->stream.drain_unsettled(step_);
  else channel_->stream.drain(step_);
  phase_ = Phase::kDrained;
}

// One piece of the next read.
Status SingleCopy::read_on(const std::vector<Read>& reads) {
  const Read& read = reads[next_];
  const bool all = read.from == Read::kAll;
  const size_t most = all ? reduce_piece_bytes(topology_.size) : kPiece;
  const size_t bytes = std::min(most, read.bytes - offset_);
  RR_TRY(all ? reduce_piece(read.at + offset_, read.to + offset_, bytes)
             : read_piece(read.from, read.at + offset_, read.to + offset_, bytes));
  offset_ += bytes;
  if (offset_ < read.bytes) return Status::ok();
  offset_ = 0;
  ++next_;
  return Status::ok();
}

Status SingleCopy::fetch(int from, const char* address, char* to, size_t bytes) {
  const Status status = channel_->peers->read(channel_->world(from), address, to, bytes);
#ifndef __SANITIZE_THREAD__
  std::atomic_thread_fence(std::memory_order_acquire);  // what was read comes before the look
#endif
  // It may have let go of the memory as it gave up.
  if (channel_->stream.broken_off()) return Status::ok();
  // As memory of a device, which its owner can read, the system for others not.
  if (status.code() == Code::kSystem && !overwritten_) return channel_->stream.refuse(step_), Status::ok();
  return status;
}

Status SingleCopy::read_piece(int from, size_t at, size_t to, size_t bytes) {
  const char* memory = phase_ == Phase::kInputs ? published(from)->in : published(from)->result;
  if (from != topology_.rank) return fetch(from, memory + at, result_ + to, bytes);
  if (result_ + to != memory + at) copy(result_ + to, memory + at, bytes);
  return Status::ok();
}

// In the order of ranks, as the staged machine does it.
Status SingleCopy::reduce_piece(size_t at, size_t to, size_t bytes) {
  const int n = topology_.size;
  char* scratch = channel_->peers->scratch(reduce_piece_bytes(n) * (n - 1));
  sources_.resize(n);
  for (int i = 0; i < n; ++i) {
    if (i == topology_.rank) {
      sources_[i] = submission_.pieces[0].in + at;
      continue;
    }
    RR_TRY(fetch(i, published(i)->in + at, scratch, bytes));
    sources_[i] = scratch;
    scratch += reduce_piece_bytes(n);
  }
  void* target[] = {result_ + to};
  reduce(submission_.dtype, submission_.reduction(),
         {target, 1, sources_.data(), n, bytes / info(submission_.dtype).size, submission_.scale(n)});
  return Status::ok();
}

std::string SingleCopy::where() const {
  if (staged_) return staged_->where();
  switch (phase_) {
    case Phase::kPublish:
    case Phase::kMeet: return "saying where the tensors lie";
    case Phase::kDrained: return "all read; waiting for other ranks to have read this one's memory";
    default: break;
  }
  const std::vector<Read>& reads = phase_ == Phase::kInputs ? reads_.inputs : reads_.results;
  return std::to_string(next_) + " of " + std::to_string(reads.size()) + " blocks read from the memory of other ranks";
}

}  // namespace ringreduce
