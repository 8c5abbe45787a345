#include "ops/submission.h"

#include <cstdio>
#include <cstring>

#include "kernels/kernels.h"

namespace ringreduce {

namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

uint64_t bits(double value) {
  uint64_t word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  bool first = true;
  for (int64_t extent : shape) {
    if (extent == Submission::kNextTensor) {
      text += "], [";
      first = true;
      continue;
    }
    if (!first) text += ", ";
    text += std::to_string(extent);
    first = false;
  }
  return text + "]";
}

}  // namespace

bool has_meaning(const ReduceOpInfo& op, DType dtype) {
  return reduce_supported(dtype, op.reduction) && !(op.averages && info(dtype).family == Family::kBool);
}

Status validate(const Call& call, int set_size) {
  const Kind& kind = *call.kind;
  const std::string name = kind.name;
  const auto ranks = [set_size] { return std::to_string(set_size) + " ranks"; };
  if (kind.reduces) {
    const ReduceOpInfo* op = find_op(call.op);
    if (!op) return {Code::kInvalid, name + ": op is " + std::to_string(call.op) + "; allowed are Average, Sum, Min, Max and Product"};
    if (!has_meaning(*op, call.dtype))
      return {Code::kInvalid, name + ": " + op->name + " has no meaning for " + info(call.dtype).name};
  }
  if (kind.root != Kind::Root::kNone && (call.root < 0 || call.root >= set_size))
    return {Code::kInvalid, name + ": root rank " + std::to_string(call.root) + " is not in a process set of " + ranks()};
  if (kind.counts == Kind::Counts::kNone) return Status::ok();
  if (call.ranks != static_cast<size_t>(set_size))
    return {Code::kInvalid, name + ": " + std::to_string(call.ranks) + " counts for a process set of " + ranks()};
  int64_t sum = 0;
  for (size_t i = 0; i < call.ranks; ++i) {
    if (call.counts[i] < 0) return {Code::kInvalid, name + ": a count is negative"};
    sum += call.counts[i];
  }
  if (static_cast<size_t>(sum) != call.bytes)
    return {Code::kInvalid, name + ": the counts sum to " + std::to_string(sum) + " bytes, the tensor has " +
                                std::to_string(call.bytes)};
  return Status::ok();
}

uint64_t signature(const Call& c) {
  Hasher hash;
  hash.add(uint64_t{c.kind->number} << 32 | uint64_t{c.on_gpu} << 16 | static_cast<uint64_t>(c.dtype));
  if (c.kind->reduces) hash.add(c.op).add(bits(c.prescale)).add(bits(c.postscale));
  if (c.kind->counts == Kind::Counts::kAgreed)
    for (size_t i = 0; i < c.ranks; ++i) hash.add(c.counts[i]);
  hash.add(static_cast<uint64_t>(c.root)).add(c.dims);
  for (size_t i = 0; i < c.dims; ++i) hash.add(c.shape[i]);
  return hash.value();
}

Call Submission::call() const {
  Call c;
  static_cast<Arithmetic&>(c) = *this;
  c.kind = kind;
  c.root = root;
  c.on_gpu = on_gpu;
  c.name = name;
  c.bytes = bytes();
  c.shape = shape.data();
  c.dims = shape.size();
  c.counts = counts.data();
  c.ranks = counts.size();
  return c;
}

bool PlainCall::share(int64_t* bytes_by_rank, int set_size) {
  if (kind->counts == Kind::Counts::kNone) return true;
  const int64_t row = rows ? static_cast<int64_t>(bytes) / rows : 0, each = rows / set_size, more = rows % set_size;
  if (kind->counts == Kind::Counts::kOwn && more && kind->root == Kind::Root::kNone) return false;
  for (int i = 0; i < set_size; ++i)
    bytes_by_rank[i] = kind->root == Kind::Root::kTo ? (i == root ? rows * row : 0) : (each + (i < more)) * row;
  counts = bytes_by_rank;
  ranks = static_cast<size_t>(set_size);
  return true;
}

Submission PlainCall::submission() const {
  Submission s;
  static_cast<Arithmetic&>(s) = *this;
  s.kind = kind;
  s.root = root;
  s.name = name;
  s.pieces.push_back({in, kind->alike ? out : nullptr, bytes});
  s.shape.assign(shape, shape + dims);
  s.counts.assign(counts, counts + ranks);
  return s;
}

std::string describe(const Submission& s, const std::vector<int>& world) {
  const Kind& kind = *s.kind;
  std::string text = kind.name;
  if (!kind.machine) return text;
  if (kind.reduces) text += std::string(" ") + find_op(s.op)->name;
  text += std::string(" of ") + info(s.dtype).name + " ";
  text += (kind.rows ? "rows " : "") + shape_text(s.shape);
  text += s.on_gpu ? " on cuda" : " on cpu";
  if (kind.root != Kind::Root::kNone) text += (kind.root == Kind::Root::kFrom ? " from rank " : " to rank ") + std::to_string(world[s.root]);
  if (s.prescale != 1.0) text += ", prescale " + number(s.prescale);
  if (s.postscale != 1.0) text += ", postscale " + number(s.postscale);
  return text;
}

Key make_key(const Call& call, uint64_t unnamed_count) {
  if (call.name.empty()) return {mix(unnamed_count + 1), unnamed_count};
  const uint64_t kind = call.kind->number;
  return {Hasher(kind).add_bytes(call.name.data(), call.name.size()).value(),
          Hasher(~kind).add_bytes(call.name.data(), call.name.size()).value()};
}

}  // namespace ringreduce
