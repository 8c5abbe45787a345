// A collective within one host that stages nothing: each rank reads what it needs from the memory of the others.
//
//   publish   say where the own tensors lie, in one step of the in-host channel (fill)
//   inputs    read, and reduce, what the ranks have submitted; then settle
//   results   read what the others have reduced, once all have settled      (allreduce only)
//   drain     this rank has read what it needs; done when all have
//
//   tensors |aaaa|bbbb| |aaaa|bbbb|    inputs: rank 0 reads rank 1's a, and writes a = a0 + a1 to its result
//            rank 0      rank 1        results: it copies b from rank 1's result
//
// What to read differs by collective, and is a plan, which is all that a collective says about it (Reads), beside Output::counts. Every
// rank draws the same conclusion from what all have published: where memory cannot be read, or there is too little to
// read, or staging is quicker (ways.h), the staged machine takes over.
//
// A tensor stays as it is until all have drained. A rank that fails before says so (Staging::break_off) and nobody
// finishes after that: what was read meanwhile may be anything.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "collectives/machine.h"
#include "collectives/ways.h"
#include "ops/submission.h"

namespace ringreduce {

// Bytes of the rank `from`'s memory, `at` on, that go to the result, `to` on.
struct Read {
  static constexpr int kAll = -1;  // those of all ranks, reduced
  int from;
  size_t at, to, bytes;
};

struct Reads {
  std::vector<Read> inputs, results;
  size_t largest = 0;  // that any rank reads of another; the same on all ranks

  static void add(std::vector<Read>* reads, const Read& read);  // of nothing: none
  // This rank's own first, by which the rest of it leaves the core's caches, where others find it late. Then the
  // neighbour's after it, so that not all meet at rank 0.
  void begin_with(int rank);
};

// How many bytes each rank has for each, [from][to]; empty unless ranks tell each other.
using Matrix = std::vector<size_t>;

class SingleCopy : public Machine {
 public:
  using Plan = Reads (*)(const Topology&, const Submission&, Output*, const Matrix&);
  using Staged = std::unique_ptr<Machine> (*)(Channel*, const Submission&, Output*, const Matrix&);

  // For an operation that it can be used for.
  static bool suits(const Channel& channel, const Submission& submission);
  SingleCopy(Channel* channel, const Submission& submission, Output* output, Plan plan, Staged staged);
  ~SingleCopy() override;

  Status advance(bool* moved) override;
  bool done() const override;
  std::string where() const override;

 private:
  struct Published;
  enum class Phase { kPublish, kMeet, kInputs, kResults, kDrained };

  bool tells_counts() const { return submission_.kind->counts == Kind::Counts::kOwn; }
  bool is_enough() const;
  bool offers() const;
  const Published* published(int rank) const;
  void publish();
  Status meet();
  void stage();
  void settle();
  void drain();
  Status read_on(const std::vector<Read>& reads);
  Status read_piece(int from, size_t at, size_t to, size_t bytes);
  Status reduce_piece(size_t at, size_t to, size_t bytes);
  Status fetch(int from, const char* address, char* to, size_t bytes);

  Channel* channel_;
  const Topology& topology_;
  const Submission& submission_;
  Output* output_;
  Plan plan_;
  Staged make_staged_;
  const bool any_size_;
  Ways::Record& record_;
  int64_t begun_ns_ = 0;
  bool timed_ = false;
  bool overwritten_ = false;      // by any rank: its input, with the result
  Phase phase_ = Phase::kPublish;
  Reads reads_;
  uint64_t step_ = 0;
  char* result_ = nullptr;
  size_t next_ = 0, offset_ = 0;  // within the reads of the phase
  std::vector<const void*> sources_;
  Matrix counts_;
  std::unique_ptr<Machine> staged_;
};

}  // namespace ringreduce
