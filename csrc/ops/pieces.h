// Several buffers seen as one: the tensors of a fused or grouped operation, end to end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace ringreduce {

struct Piece {
  const char* in = nullptr;
  char* out = nullptr;  // may be the same as in; null: the result is not wanted here
  size_t bytes = 0;
};

class Pieces {
 public:
  Pieces() = default;
  explicit Pieces(const std::vector<Piece>& pieces) {
    for (const Piece& piece : pieces) append(piece);
  }

  void append(const Piece& piece) {
    if (!piece.bytes) return;
    pieces_.push_back(piece);
    starts_.push_back(bytes_);
    bytes_ += piece.bytes;
    if (piece.in != piece.out) in_place_ = false;
  }

  size_t bytes() const { return bytes_; }
  bool in_place() const { return in_place_; }

  // Input bytes [offset, offset + bytes) to `to`.
  void gather(size_t offset, size_t bytes, char* to) const {
    visit(offset, bytes, [&](const Piece& piece, size_t at, size_t n, size_t done) {
      copy(to + done, piece.in + at, n);
    });
  }
  // `from` to output bytes [offset, offset + bytes).
  void scatter(size_t offset, size_t bytes, const char* from, bool stream) const {
    visit(offset, bytes, [&](const Piece& piece, size_t at, size_t n, size_t done) {
      if (piece.out) copy(piece.out + at, from + done, n, stream);
    });
  }
  // Where [offset, offset + bytes) lies, if it lies in one piece.
  bool direct(size_t offset, size_t bytes, const char** in, char** out) const {
    if (!bytes) return false;
    const size_t i = index(offset);
    const size_t at = offset - starts_[i];
    if (at + bytes > pieces_[i].bytes) return false;
    *in = pieces_[i].in + at;
    *out = pieces_[i].out ? pieces_[i].out + at : nullptr;
    return true;
  }

 private:
  size_t index(size_t offset) const {
    if (pieces_.size() == 1) return 0;
    return std::upper_bound(starts_.begin(), starts_.end(), offset) - starts_.begin() - 1;
  }
  template <typename Body>
  void visit(size_t offset, size_t bytes, Body body) const {
    size_t done = 0;
    for (size_t i = bytes ? index(offset) : 0; done < bytes; ++i) {
      const size_t at = offset + done - starts_[i];
      const size_t n = std::min(bytes - done, pieces_[i].bytes - at);
      body(pieces_[i], at, n, done);
      done += n;
    }
  }

  std::vector<Piece> pieces_;
  std::vector<size_t> starts_;
  size_t bytes_ = 0;
  bool in_place_ = true;
};

}  // namespace ringreduce
