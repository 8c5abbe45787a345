#include "collectives/make_machine.h"

#include "collectives/allgather.h"
#include "collectives/allreduce.h"
#include "collectives/alltoall.h"
#include "collectives/broadcast.h"
#include "collectives/reducescatter.h"

namespace ringreduce {

std::unique_ptr<Machine> make_machine(Channel* channel, const Submission& s, Output* output) {
  const Scale scale = s.scale(channel->topology->size);
  const Piece piece = s.pieces.empty() ? Piece{} : s.pieces[0];
  switch (s.kind) {
    case Kind::kAllreduce:
      return std::make_unique<Allreduce>(channel, Pieces(s.pieces), s.dtype, s.reduction(), scale);
    case Kind::kBroadcast:
      return std::make_unique<Broadcast>(channel, piece.in, piece.out, piece.bytes, s.root);
    case Kind::kAllgather:
      return std::make_unique<Allgather>(channel, piece.in, piece.bytes, output);
    case Kind::kReducescatter:
      return std::make_unique<Reducescatter>(channel, piece.in, piece.out, s.counts, s.dtype, s.reduction(), scale);
    case Kind::kAlltoall:
      return std::make_unique<Alltoall>(channel, piece.in, s.counts, output);
    case Kind::kBarrier:
    case Kind::kSplit: break;
  }
  return nullptr;
}

}  // namespace ringreduce
