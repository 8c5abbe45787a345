// ncclCommSplit over comm.h.
#include <algorithm>

#include "comms.h"

using namespace ringreduce;
using namespace ringreduce::doubles;

namespace {

// On the helper thread: the child is there when the parent is no longer in progress.
int split(Comm& parent, int color, int key, bool blocking, NcclComm* out) {
  std::vector<Comm::SplitRecord> all;
  if (!parent.pause() || !parent.exchange({color, key}, &all)) return kNcclInternalError;
  const int number = parent.splits++;
  if (color == NcclApi::kNoColor) return kNcclSuccess;
  std::vector<int> members;
  for (int rank = 0; rank < parent.size; ++rank)
    if (all[rank].color == color) members.push_back(rank);
  std::stable_sort(members.begin(), members.end(), [&](int a, int b) { return all[a].key < all[b].key; });
  const int rank = static_cast<int>(std::find(members.begin(), members.end(), parent.rank) - members.begin());
  auto child = std::make_shared<Comm>(rank, static_cast<int>(members.size()), parent.device, blocking);
  if (!child->open(parent.name() + "." + std::to_string(number) + "." + std::to_string(color))) return kNcclSystemError;
  *out = add_comm(child);
  child->in_background([made = child.get()] { return made->join(); });
  return kNcclSuccess;
}

}  // namespace

extern "C" RR_DOUBLE_EXPORT int ncclCommSplit(NcclComm handle, int color, int key, NcclComm* out, NcclConfig* config) {
  std::shared_ptr<Comm> parent;
  if (const int code = enter_call("ncclCommSplit", handle, nullptr, &parent)) return code;
  if (!valid(config) || color < NcclApi::kNoColor) return kNcclInvalidArgument;
  if (parent->in_flight) rr_double_misuse("ncclCommSplit with operations of the communicator that have not finished");
  const bool blocking = config ? config->blocking : parent->blocking;
  *out = nullptr;
  const int code =
      parent->in_background([&parent = *parent, color, key, blocking, out] { return split(parent, color, key, blocking, out); });
  return code == kNcclInProgress ? kNcclSuccess : code;  // as NCCL: that it is in progress the parent's state says
}
