// A NCCL without a GPU, for ranks that are threads or processes of one machine: NCCL's own function
// names over comm.h. What it checks beyond NCCL counts as misuse (control.h).
#include <cstdio>
#include <cstring>
#include <map>
#include <random>

#include <unistd.h>

#include "comms.h"

namespace ringreduce::doubles {

namespace {

constexpr int kDTypes = 10, kOps = 5;

struct Comms {
  std::mutex mutex;
  std::map<NcclComm, std::shared_ptr<Comm>> all;  // also those that are gone, to know them again
  std::string last_error;
};

Comms& comms() {
  static Comms& comms = *new Comms;
  return comms;
}

int fail(int code, const std::string& text) {
  std::lock_guard<std::mutex> lock(comms().mutex);
  comms().last_error = text;
  return code;
}

int misused(int code, const std::string& text) {
  rr_double_misuse(text.c_str());
  return fail(code, text);
}

// Null (a misuse) where it does not exist any more, or never did.
std::shared_ptr<Comm> find(const char* function, NcclComm handle) {
  std::shared_ptr<Comm> comm;
  {
    std::lock_guard<std::mutex> lock(comms().mutex);
    const auto at = comms().all.find(handle);
    if (at != comms().all.end()) comm = at->second;
  }
  if (comm && !comm->gone()) return comm;
  misused(0, std::string(function) + (comm ? " on a communicator that was destroyed or aborted" : " on what is no communicator"));
  return nullptr;
}

// --- enqueueing ----------------------------------------------------------------------------------

struct Launch {
  std::shared_ptr<Comm> comm;
  void* stream;
  std::vector<Call> calls;
  Disturbance disturbance;
  uint64_t turn = Comm::kNoTurn;

  static void run(void* state) {
    auto* launch = static_cast<Launch*>(state);
    const bool again = launch->turn == Comm::kNoTurn;  // when its graph is launched again
    launch->comm->run(launch->calls, launch->turn, launch->disturbance);
    if (!again) delete launch;
  }
};

struct Group {
  int depth = 0, error = kNcclSuccess;
  std::vector<Launch> launches;  // one for each communicator
};
thread_local Group group;

int launch(Launch made) {
  Comm& comm = *made.comm;
  rr_double_count_up("launch");
  bool collective = false, p2p = false;
  for (const Call& call : made.calls) (call.is_p2p() ? p2p : collective) = true;
  if (!rr_double_is_capturing(made.stream)) {
    made.turn = comm.next_turn++;
    ++comm.in_flight;
  }
  auto* launch = new Launch(std::move(made));
  const bool connects = collective && !comm.connected, first = connects || (p2p && !comm.connected_p2p);
  comm.connected = comm.connected || collective;
  comm.connected_p2p = comm.connected_p2p || p2p;
  // Since 2.22 a thread does all that is asked of a nonblocking communicator.
  if (comm.size == 1 || (!first && comm.blocking)) {
    rr_double_enqueue(launch->stream, Launch::run, launch);
    return kNcclSuccess;
  }
  // Enqueued once the ranks are connected, also where that was aborted.
  return comm.in_background([&comm, launch, first, connects] {
    const bool connected = !first || (comm.pause() && (!connects || comm.connect()));
    rr_double_use_device(comm.device);
    rr_double_enqueue(launch->stream, Launch::run, launch);
    return connected ? kNcclSuccess : kNcclInternalError;
  });
}

int check(const Call& call, const Comm& comm, void* stream) {
  const bool reduces = call.kind == Kind::kAllReduce || call.kind == Kind::kReduceScatter;
  if (call.dtype < 0 || call.dtype >= kDTypes) return misused(kNcclInvalidArgument, "NCCL has no such dtype: " + describe(call));
  if (reduces && (call.op < 0 || call.op >= kOps)) return misused(kNcclInvalidArgument, "NCCL has no such op: " + describe(call));
  if (call.peer < 0 || call.peer >= comm.size) return misused(kNcclInvalidArgument, "no such rank: " + describe(call));
  if (rr_double_stream_device(stream) != comm.device)
    return misused(kNcclInvalidUsage, "the stream is of another GPU than the communicator: " + describe(call));
  return kNcclSuccess;
}

int add_to_group(const std::shared_ptr<Comm>& comm, const Call& call, void* stream, Disturbance disturbance) {
  for (Launch& launch : group.launches) {
    if (launch.comm != comm) continue;
    if (launch.stream != stream) return misused(kNcclInvalidUsage, "one group, one communicator, two streams: " + describe(call));
    launch.calls.push_back(call);
    if (disturbance.hang) launch.disturbance = disturbance;
    return kNcclSuccess;
  }
  group.launches.push_back({comm, stream, {call}, disturbance});
  return kNcclSuccess;
}

int call_on(const char* function, NcclComm handle, void* stream, const Call& call) {
  const auto answer = [](int code) {
    if (group.depth && !group.error) group.error = code;
    return code;
  };
  std::shared_ptr<Comm> comm;
  int code = enter_call(function, handle, stream, &comm);
  if (code == kNcclSuccess) code = check(call, *comm, stream);
  if (code != kNcclSuccess) return answer(code);
  rr_double_count_up("nccl_collective");
  if (const int ordered = rr_double_take_fault("nccl_collective")) {
    comm->note("a failure that a test ordered");
    return answer(ordered);
  }
  Disturbance disturbance;
  disturbance.error = rr_double_take_fault("nccl_async");
  disturbance.hang = disturbance.error || rr_double_take_fault("nccl_hang");
  if (!call.count) return kNcclSuccess;  // as NCCL
  if (group.depth) return answer(add_to_group(comm, call, stream, disturbance));
  return launch({comm, stream, {call}, disturbance});
}

}  // namespace

int enter_call(const char* function, NcclComm handle, void* stream, std::shared_ptr<Comm>* comm) {
  const std::shared_ptr<Comm> found = find(function, handle);
  if (!found) return kNcclInvalidArgument;
  if (const int ordered = rr_double_enter(function, stream)) {
    found->note("a failure that a test ordered");
    return ordered;
  }
  const int state = found->state();
  if (state == kNcclInProgress)
    return misused(kNcclInvalidArgument, std::string(function) + " while the call before is in progress");
  if (state != kNcclSuccess) return state;
  if (rr_double_current_device() != found->device)
    return misused(kNcclInvalidUsage, std::string(function) + ": the current device is not the communicator's");
  *comm = found;
  return kNcclSuccess;
}

NcclComm add_comm(std::shared_ptr<Comm> comm) {
  const auto handle = reinterpret_cast<NcclComm>(comm.get());
  std::lock_guard<std::mutex> lock(comms().mutex);
  comms().all[handle] = std::move(comm);
  return handle;
}

bool valid(const NcclConfig* config) {
  return !config || (config->size == sizeof(NcclConfig) && config->magic == NcclConfig().magic);
}

}  // namespace ringreduce::doubles

using namespace ringreduce;
using namespace ringreduce::doubles;

extern "C" {

RR_DOUBLE_EXPORT int ncclGetVersion(int* version) {
  *version = static_cast<int>(rr_double_get("nccl_version"));
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT const char* ncclGetErrorString(int result) {
  static constexpr const char* kTexts[] = {
      "no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument",
      "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
  return result >= 0 && result <= kNcclInProgress ? kTexts[result] : "unknown result code";
}

RR_DOUBLE_EXPORT const char* ncclGetLastError(NcclComm handle) {
  thread_local std::string text;
  std::shared_ptr<Comm> comm;
  {
    std::lock_guard<std::mutex> lock(comms().mutex);
    text = comms().last_error;
    const auto at = comms().all.find(handle);
    if (at != comms().all.end()) comm = at->second;
  }
  if (comm && !comm->last_error().empty()) text = comm->last_error();
  return text.c_str();
}

RR_DOUBLE_EXPORT int ncclGetUniqueId(NcclUniqueId* id) {
  if (const int ordered = rr_double_enter("ncclGetUniqueId", nullptr)) return fail(ordered, "a failure that a test ordered");
  std::random_device random;
  *id = {};
  std::snprintf(id->internal, sizeof id->internal, "ringreduce-nccl-double-%d-%08x%08x", getpid(), random(), random());
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT int ncclCommInitRankConfig(NcclComm* out, int size, NcclUniqueId id, int rank, NcclConfig* config) {
  if (const int ordered = rr_double_enter("ncclCommInitRankConfig", nullptr)) return fail(ordered, "a failure that a test ordered");
  *out = nullptr;
  const std::string name(id.internal, strnlen(id.internal, sizeof id.internal));
  if (size < 1 || rank < 0 || rank >= size || !valid(config) || name.rfind("ringreduce-nccl-double-", 0) != 0)
    return misused(kNcclInvalidArgument, "ncclCommInitRankConfig: an argument is wrong");
  auto comm = std::make_shared<Comm>(rank, size, rr_double_current_device(),
                                     (!config || config->blocking) && rr_double_get("nccl_comm_blocking"));
  if (!comm->open(name)) return fail(kNcclSystemError, "the shared memory of a communicator cannot be opened");
  *out = add_comm(comm);
  return comm->in_background([made = comm.get()] { return made->join(); });
}

RR_DOUBLE_EXPORT int ncclCommDestroy(NcclComm handle) {
  const std::shared_ptr<Comm> comm = find("ncclCommDestroy", handle);
  if (!comm) return kNcclInvalidArgument;
  if (const int ordered = rr_double_enter("ncclCommDestroy", nullptr)) return ordered;
  if (comm->state() == kNcclInProgress) return misused(kNcclInvalidArgument, "ncclCommDestroy while a call is in progress");
  comm->destroy();
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT int ncclCommAbort(NcclComm handle) {
  const std::shared_ptr<Comm> comm = find("ncclCommAbort", handle);
  if (!comm) return kNcclInvalidArgument;
  if (const int ordered = rr_double_enter("ncclCommAbort", nullptr)) return ordered;
  comm->abort();
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT int ncclCommGetAsyncError(NcclComm handle, int* result) {
  const std::shared_ptr<Comm> comm = find("ncclCommGetAsyncError", handle);
  if (!comm) return kNcclInvalidArgument;
  if (const int ordered = rr_double_enter("ncclCommGetAsyncError", nullptr)) return ordered;
  *result = comm->state();
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT int ncclAllReduce(const void* in, void* out, size_t count, int dtype, int op, NcclComm comm, void* stream) {
  return call_on("ncclAllReduce", comm, stream, {Kind::kAllReduce, in, out, count, dtype, op, 0});
}

RR_DOUBLE_EXPORT int ncclBroadcast(const void* in, void* out, size_t count, int dtype, int root, NcclComm comm, void* stream) {
  return call_on("ncclBroadcast", comm, stream, {Kind::kBroadcast, in, out, count, dtype, 0, root});
}

RR_DOUBLE_EXPORT int ncclAllGather(const void* in, void* out, size_t count, int dtype, NcclComm comm, void* stream) {
  return call_on("ncclAllGather", comm, stream, {Kind::kAllGather, in, out, count, dtype, 0, 0});
}

RR_DOUBLE_EXPORT int ncclReduceScatter(const void* in, void* out, size_t count, int dtype, int op, NcclComm comm, void* stream) {
  return call_on("ncclReduceScatter", comm, stream, {Kind::kReduceScatter, in, out, count, dtype, op, 0});
}

RR_DOUBLE_EXPORT int ncclSend(const void* in, size_t count, int dtype, int peer, NcclComm comm, void* stream) {
  return call_on("ncclSend", comm, stream, {Kind::kSend, in, nullptr, count, dtype, 0, peer});
}

RR_DOUBLE_EXPORT int ncclRecv(void* out, size_t count, int dtype, int peer, NcclComm comm, void* stream) {
  return call_on("ncclRecv", comm, stream, {Kind::kReceive, nullptr, out, count, dtype, 0, peer});
}

RR_DOUBLE_EXPORT int ncclGroupStart() {
  if (const int ordered = rr_double_enter("ncclGroupStart", nullptr)) return ordered;
  ++group.depth;
  return kNcclSuccess;
}

RR_DOUBLE_EXPORT int ncclGroupEnd() {
  if (!group.depth) return misused(kNcclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group.depth) return kNcclSuccess;
  Group ended;
  std::swap(ended, group);
  int code = rr_double_enter("ncclGroupEnd", nullptr);
  if (!code) code = ended.error;
  if (code != kNcclSuccess) return fail(code, "a call of the group failed");
  for (Launch& made : ended.launches) {
    const int launched = launch(std::move(made));
    if (launched != kNcclSuccess) code = launched;
  }
  return code;
}

}  // extern "C"
