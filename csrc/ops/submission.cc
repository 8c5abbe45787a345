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

Status validate(const Submission& s, int set_size) {
  const Kind& kind = *s.kind;
  const std::string name = kind.name, ranks = std::to_string(set_size) + " ranks";
  if (kind.reduces) {
    const ReduceOpInfo* op = find_op(s.op);
    if (!op) return {Code::kInvalid, name + ": op is " + std::to_string(s.op) + "; allowed are Average, Sum, Min, Max and Product"};
    if (!has_meaning(*op, s.dtype))
      return {Code::kInvalid, name + ": " + op->name + " has no meaning for " + info(s.dtype).name};
  }
  if (kind.root != Kind::Root::kNone && (s.root < 0 || s.root >= set_size))
    return {Code::kInvalid, name + ": root rank " + std::to_string(s.root) + " is not in a process set of " + ranks};
  if (kind.counts == Kind::Counts::kNone) return Status::ok();
  if (static_cast<int>(s.counts.size()) != set_size)
    return {Code::kInvalid, name + ": " + std::to_string(s.counts.size()) + " counts for a process set of " + ranks};
  int64_t sum = 0;
  for (int64_t count : s.counts) {
    if (count < 0) return {Code::kInvalid, name + ": a count is negative"};
    sum += count;
  }
  if (static_cast<size_t>(sum) != s.bytes())
    return {Code::kInvalid, name + ": the counts sum to " + std::to_string(sum) + " bytes, the tensor has " +
                                std::to_string(s.bytes())};
  return Status::ok();
}

namespace {

uint64_t sign(const Kind& kind, bool on_gpu, const Arithmetic& a, int root, const std::vector<int64_t>* counts, const int64_t* shape,
              size_t dims) {
  Hasher hash;
  hash.add(uint64_t{kind.number} << 32 | uint64_t{on_gpu} << 16 | static_cast<uint64_t>(a.dtype));
  if (kind.reduces) hash.add(a.op).add(bits(a.prescale)).add(bits(a.postscale));
  if (counts)
    for (int64_t count : *counts) hash.add(count);
  hash.add(static_cast<uint64_t>(root)).add(dims);
  for (size_t i = 0; i < dims; ++i) hash.add(shape[i]);
  return hash.value();
}

}  // namespace

uint64_t signature(const Submission& s) {
  const bool counts = s.kind->counts == Kind::Counts::kAgreed;
  return sign(*s.kind, s.on_gpu, s, s.root, counts ? &s.counts : nullptr, s.shape.data(), s.shape.size());
}

uint64_t signature(const Kind& kind, const PlainAllreduce& p) {
  return sign(kind, false, p, Submission::kNoRoot, nullptr, p.shape, p.dims);
}

Submission PlainAllreduce::submission(const Kind& kind) const {
  Submission s;
  static_cast<Arithmetic&>(s) = *this;
  s.kind = &kind;
  s.pieces.push_back({data, data, bytes});
  s.shape.assign(shape, shape + dims);
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

Key unnamed_key(uint64_t count) { return {mix(count + 1), count}; }

Key make_key(const Submission& s, uint64_t unnamed_count) {
  if (s.name.empty()) return unnamed_key(unnamed_count);
  const uint64_t kind = s.kind->number;
  return {Hasher(kind).add_bytes(s.name.data(), s.name.size()).value(),
          Hasher(~kind).add_bytes(s.name.data(), s.name.size()).value()};
}

}  // namespace ringreduce
