#include "collectives/kinds.h"

#include <type_traits>

#include "collectives/allgather.h"
#include "collectives/allreduce.h"
#include "collectives/alltoall.h"
#include "collectives/broadcast.h"
#include "collectives/reducescatter.h"

namespace ringreduce {

namespace {

template <class Collective>
std::unique_ptr<Machine> make(Channel* channel, const Submission& submission, Output* output) {
  const SingleCopy::Staged staged = [](Channel* over, const Submission& asked, Output* into,
                                       const Matrix& counts) -> std::unique_ptr<Machine> {
    if constexpr (std::is_same_v<Collective, Alltoall>) return std::make_unique<Alltoall>(over, asked, into, counts);
    else return std::make_unique<Collective>(over, asked, into);
  };
  if (!SingleCopy::suits(*channel, submission)) return staged(channel, submission, output, {});
  return std::make_unique<SingleCopy>(channel, submission, output, Collective::reads, staged);
}

constexpr auto kAny = Kind::Root::kNone, kFrom = Kind::Root::kFrom, kTo = Kind::Root::kTo;
constexpr auto kNone = Kind::Counts::kNone, kAgreed = Kind::Counts::kAgreed, kOwn = Kind::Counts::kOwn;
constexpr auto kAsLarge = Kind::Small::kAsLarge, kNothing = Kind::Small::kNothing, kReduced = Kind::Small::kReduced,
               kGathered = Kind::Small::kGathered;

// Numbers go into hashes that the ranks compare: append, never renumber.
constexpr Kind kKinds[] = {
    // number, name      root   reduces rows   alike  fuses  counts   small      machine
    {0, "allreduce",     kAny,  true,   false, true,  true,  kNone,   kReduced,  make<Allreduce>},
    {1, "broadcast",     kFrom, false,  false, true,  false, kNone,   kGathered, make<Broadcast>},
    {2, "allgather",     kAny,  false,  true,  false, false, kNone,   kGathered, make<Allgather>},
    {3, "reducescatter", kAny,  true,   false, false, false, kAgreed, kReduced,  make<Reducescatter>},
    {4, "alltoall",      kAny,  false,  true,  false, false, kOwn,    kGathered, make<Alltoall>},
    {5, "barrier",       kAny,  false,  false, true,  false, kNone,   kNothing,  nullptr},
    // Of the GPU communicator, for a new process set (gpu/split.h).
    {6, "split",         kAny,  false,  false, true,  false, kNone,   kAsLarge,  nullptr},
    // Alltoalls in which all is to or from one rank.
    {7, "gather",        kTo,   false,  true,  false, false, kOwn,    kGathered, make<Alltoall>},
    {8, "scatter",       kFrom, false,  true,  false, false, kOwn,    kGathered, make<Alltoall>},
    // An allreduce whose result is written on the root only: elsewhere the pieces have no output.
    {9, "reduce",        kTo,   true,   false, true,  false, kNone,   kReduced,  make<Allreduce>},
};

}  // namespace

const Kind* find_kind(const std::string& name) {
  for (const Kind& kind : kKinds)
    if (name == kind.name) return &kind;
  return nullptr;
}

const Kind &kAllreduce = kKinds[0], &kBarrier = kKinds[5], &kSplit = kKinds[6];

}  // namespace ringreduce
