// What a caller asks for: one operation on one rank, before it has met its peers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/kind.h"
#include "ops/output.h"
#include "ops/pieces.h"
#include "common/dtype.h"
#include "common/hash.h"
#include "common/status.h"

namespace ringreduce {

// Identifies an operation among those in flight in its process set.
struct Key {
  uint64_t a = 0, b = 0;
  bool operator==(const Key& other) const { return a == other.a && b == other.b; }
};
struct KeyHash {
  size_t operator()(const Key& key) const { return key.a; }
};

// What is computed.
struct Arithmetic {
  DType dtype = DType::kUint8;
  int op = kOpSum;
  double prescale = 1.0, postscale = 1.0;

  Reduction reduction() const { return row().reduction; }
  bool averages() const { return row().averages; }
  Scale scale(int set_size) const {
    return {prescale, averages() ? postscale / set_size : postscale};
  }

 private:
  const ReduceOpInfo& row() const {
    const ReduceOpInfo* known = find_op(op);
    return known ? *known : *find_op(kOpSum);  // what validate() refuses
  }
};

// One operation as the ranks compare it, without anything of its own: it refers to whoever describes it.
struct Call : Arithmetic {
  static constexpr int kNoRoot = -1;
  const Kind* kind = nullptr;
  int root = kNoRoot;             // rank within the set
  bool on_gpu = false;            // where the tensors are
  std::string_view name;          // empty: matched by the set's counter
  size_t bytes = 0;               // of the input
  const int64_t* shape = nullptr;
  size_t dims = 0;
  const int64_t* counts = nullptr;  // see Kind::Counts; one a rank of the set
  size_t ranks = 0;
};

struct Submission : Arithmetic {
  const Kind* kind = nullptr;
  static constexpr int kNoRoot = Call::kNoRoot;
  int root = kNoRoot;             // rank within the set
  bool on_gpu = false;            // where the tensors are
  void* stream = nullptr;         // on the GPU: the caller's, on which they get their values
  std::string name;               // empty: matched by the set's counter
  std::vector<Piece> pieces;      // in; and out, where the result is as large
  std::vector<Span> outputs;      // where else it goes, end to end; none: to memory of the core's
  std::vector<int64_t> shape;     // what must agree; several tensors are divided by kNextTensor
  std::vector<int64_t> counts;    // bytes by rank, see Kind::Counts
  static constexpr int64_t kNextTensor = INT64_MIN;
  // Owns the memory that `pieces` point to, for as long as the core may come to it. It ends while the
  // engine's mutex is held, so its end must wait for nothing.
  std::shared_ptr<void> keep;

  size_t bytes() const {
    size_t sum = 0;
    for (const Piece& piece : pieces) sum += piece.bytes;
    return sum;
  }
  Call call() const;
};

// The most frequent operations, described without allocating anything: of one tensor on the CPU, of which all ranks
// get nearly equal parts, if they get parts.
struct PlainCall : Call {
  const char* in = nullptr;
  int64_t rows = 0;               // of the input, where it has rows
  char* out = nullptr;            // where the result goes; null: there is none on this rank
  size_t room = 0;                // there

  // Into memory for as many numbers as the set has ranks. False: no equal parts.
  bool share(int64_t* bytes_by_rank, int set_size);
  // The same. What is not as large as its input goes to memory of the core's.
  Submission submission() const;
};

bool has_meaning(const ReduceOpInfo& op, DType dtype);

// Checks what one rank can know to be wrong.
Status validate(const Call& call, int set_size);

// Equal on all ranks whose calls may run together.
uint64_t signature(const Call& call);

// "allreduce Sum of float32 [2, 3]", for the message when signatures differ. `world`: the world
// ranks of the set, in which users name a root.
std::string describe(const Submission& submission, const std::vector<int>& world);

// Named operations are matched by kind and name, unnamed ones by order alone (so that two
// unnamed ones of different kind meet, and the mistake is reported).
Key make_key(const Call& call, uint64_t unnamed_count);

}  // namespace ringreduce
