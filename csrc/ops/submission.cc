#include "ops/submission.h"

#include <cstdio>
#include <cstring>

#include "kernels/kernels.h"

namespace ringreduce {

const char* kind_name(Kind kind) {
  static const char* const names[] = {"allreduce", "broadcast", "allgather", "reducescatter", "alltoall", "barrier", "split"};
  return names[static_cast<int>(kind)];
}

namespace {

const char* op_name(int op) {
  switch (op) {
    case kAverage: return "Average";
    case kOpSum: return "Sum";
    case kOpMin: return "Min";
    case kOpMax: return "Max";
    case kOpProduct: return "Product";
  }
  return nullptr;
}

bool reduces(Kind kind) { return kind == Kind::kAllreduce || kind == Kind::kReducescatter; }

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

Reduction Arithmetic::reduction() const {
  switch (op) {
    case kOpMin: return Reduction::kMin;
    case kOpMax: return Reduction::kMax;
    case kOpProduct: return Reduction::kProduct;
    default: return Reduction::kSum;
  }
}

Status validate(const Submission& s, int set_size) {
  const std::string kind = kind_name(s.kind);
  if (reduces(s.kind)) {
    if (!op_name(s.op))
      return {Code::kInvalid, kind + ": op is " + std::to_string(s.op) + "; allowed are Average, Sum, Min, Max and Product"};
    if (!reduce_supported(s.dtype, s.reduction()))
      return {Code::kInvalid, kind + ": " + op_name(s.op) + " has no meaning for " + info(s.dtype).name};
  }
  if (s.kind == Kind::kBroadcast && (s.root < 0 || s.root >= set_size))
    return {Code::kInvalid, "broadcast: root rank " + std::to_string(s.root) + " is not in a process set of " +
                                std::to_string(set_size) + " ranks"};
  const bool counted = s.kind == Kind::kReducescatter || s.kind == Kind::kAlltoall;
  if (counted && static_cast<int>(s.counts.size()) != set_size)
    return {Code::kInvalid, kind + ": " + std::to_string(s.counts.size()) + " counts for a process set of " +
                                std::to_string(set_size) + " ranks"};
  if (!counted) return Status::ok();
  int64_t sum = 0;
  for (int64_t count : s.counts) {
    if (count < 0) return {Code::kInvalid, kind + ": a count is negative"};
    sum += count;
  }
  const size_t bytes = s.kind == Kind::kAlltoall || s.pieces.empty() ? s.bytes() : s.pieces[0].bytes;
  if (static_cast<size_t>(sum) != bytes)
    return {Code::kInvalid, kind + ": the counts sum to " + std::to_string(sum) + " bytes, the tensor has " +
                                std::to_string(bytes)};
  return Status::ok();
}

namespace {

uint64_t sign(Kind kind, bool on_gpu, const Arithmetic& a, int root, const std::vector<int64_t>* counts, const int64_t* shape,
              size_t dims) {
  Hasher hash;
  hash.add(static_cast<uint64_t>(kind) << 32 | uint64_t{on_gpu} << 16 | static_cast<uint64_t>(a.dtype));
  if (reduces(kind)) hash.add(a.op).add(bits(a.prescale)).add(bits(a.postscale));
  if (counts)
    for (int64_t count : *counts) hash.add(count);
  hash.add(static_cast<uint64_t>(root)).add(dims);
  for (size_t i = 0; i < dims; ++i) hash.add(shape[i]);
  return hash.value();
}

}  // namespace

uint64_t signature(const Submission& s) {
  return sign(s.kind, s.on_gpu, s, s.root, s.kind == Kind::kReducescatter ? &s.counts : nullptr, s.shape.data(), s.shape.size());
}

uint64_t signature(const PlainAllreduce& p) {
  return sign(Kind::kAllreduce, false, p, Submission::kNoRoot, nullptr, p.shape, p.dims);
}

Submission PlainAllreduce::submission() const {
  Submission s;
  static_cast<Arithmetic&>(s) = *this;
  s.kind = Kind::kAllreduce;
  s.pieces.push_back({data, data, bytes});
  s.shape.assign(shape, shape + dims);
  return s;
}

std::string describe(const Submission& s, const std::vector<int>& world) {
  std::string text = kind_name(s.kind);
  if (s.kind == Kind::kBarrier || s.kind == Kind::kSplit) return text;
  if (reduces(s.kind)) text += std::string(" ") + op_name(s.op);
  text += std::string(" of ") + info(s.dtype).name + " ";
  // allgather and alltoall: the first dimension may differ and is not part of the shape.
  const bool rows = s.kind == Kind::kAllgather || s.kind == Kind::kAlltoall;
  text += (rows ? "rows " : "") + shape_text(s.shape);
  text += s.on_gpu ? " on cuda" : " on cpu";
  if (s.root >= 0) text += " from rank " + std::to_string(world[s.root]);
  if (s.prescale != 1.0) text += ", prescale " + number(s.prescale);
  if (s.postscale != 1.0) text += ", postscale " + number(s.postscale);
  return text;
}

Key unnamed_key(uint64_t count) { return {mix(count + 1), count}; }

Key make_key(const Submission& s, uint64_t unnamed_count) {
  if (s.name.empty()) return unnamed_key(unnamed_count);
  const auto kind = static_cast<uint64_t>(s.kind);
  return {Hasher(kind).add_bytes(s.name.data(), s.name.size()).value(),
          Hasher(~kind).add_bytes(s.name.data(), s.name.size()).value()};
}

}  // namespace ringreduce
