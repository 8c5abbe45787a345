// Sizes, counts, ranks and keys that a peer sends are looked at before they are used: what is impossible is an
// error that names the peer, never an access outside of what there is.
#include <cstddef>

#include "world.h"

using namespace ringreduce;

namespace {

constexpr int kTreeUp = Channel::kTreeUp, kTreeDown = Channel::kTreeDown;
constexpr size_t kRecords = 2 * sizeof(uint32_t);  // where the first begins in a message of the tree

thread_local double limit_s = 10;  // whose peer is the victim waits in vain

using Corrupt = std::function<void(char* data)>;

template <typename T>
Corrupt put(size_t at, T value) {
  return [at, value](char* data) { std::memcpy(data + at, &value, sizeof value); };
}

// `victim` of ranks 0 and 1, each on a host of its own, receives with `tag` what was corrupted.
template <typename Body>
void corrupted(int victim, int tag, const Corrupt& corrupt, Body body) {
  WorldOptions options;
  options.host_of = {0, 1};
  options.timeout_s = 0.3;
  Fault fault;
  fault.direction = Fault::Direction::kReceive;
  fault.count = Fault::kForever;
  fault.action = Fault::Action::kCorrupt;
  fault.corrupt = [tag, corrupt](int of, char* data, size_t) { if (of == tag) corrupt(data); };
  options.faults[victim] = {fault};
  World world(std::move(options));
  world.run([&](int rank, Engine& engine) {
    limit_s = rank == victim ? 10 : 0.3;
    const Status status = body(rank, engine, world);
    if (rank != victim) return;
    std::fprintf(stderr, "  %s\n", status.text().c_str());
    CHECK(status.code() == Code::kPeerLost);
    CHECK(status.text().find("rank " + std::to_string(1 - victim)) != std::string::npos);
  });
}

Status finish(Engine& engine, Submission submission) {
  OpRef op;
  RR_TRY(engine.submit(0, std::move(submission), true, &op));
  Status status;
  for (bool done = false; !done && status.is_ok();) status = engine.wait(*op, limit_s, 0.1, &done);
  return status.is_ok() ? op->status : status;
}

Status small_allreduce(int, Engine& engine, World&) {
  std::vector<float> in(4, 1), out(4);
  return finish(engine, allreduce_of("x", in, &out, DType::kFloat32));
}

Status large_allreduce(int, Engine& engine, World&) {
  std::vector<float> in(5000, 1), out(5000);
  return finish(engine, allreduce_of("x", in, &out, DType::kFloat32));
}

Status gather(const Kind* kind, int rank, Engine& engine) {
  std::vector<char> in(20'000, static_cast<char>(rank));
  Submission s;
  s.kind = kind;
  s.name = "x";
  s.pieces = {{in.data(), nullptr, in.size()}};
  if (kind == find_kind("alltoall")) s.counts = {10'000, 10'000};
  return finish(engine, s);
}
Status allgather(int rank, Engine& engine, World&) { return gather(find_kind("allgather"), rank, engine); }
Status alltoall(int rank, Engine& engine, World&) { return gather(find_kind("alltoall"), rank, engine); }

}  // namespace

TEST(records_of_a_child) {
  const size_t type = kRecords + offsetof(Record, type), verdict = kRecords + offsetof(Record, verdict);
  const size_t bytes = kRecords + offsetof(Record, inline_bytes), who = kRecords + offsetof(Record, group);
  corrupted(0, kTreeUp, put<uint32_t>(0, 1000), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(0, 0x7fffffff), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(bytes, 1 << 30), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(bytes, 4097), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(bytes, 0), small_allreduce);     // less than it is reduced with
  corrupted(0, kTreeUp, put<uint32_t>(verdict, 77), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(type, 77), small_allreduce);
  corrupted(0, kTreeUp, put<uint32_t>(type, 1), small_allreduce);      // a child decides nothing
  for (const uint32_t kind : {2, 3})                                   // has shut down, or left: who?
    corrupted(0, kTreeUp, [=](char* data) { put<uint32_t>(type, kind)(data), put<uint32_t>(who, 99)(data); }, small_allreduce);
}

// A host that had given an operation up may report it again. It does not stand for another host.
TEST(the_same_report_twice) {
  WorldOptions options;
  options.host_of = {0, 1, 2};
  Fault fault;
  fault.direction = Fault::Direction::kReceive;
  fault.count = Fault::kForever;
  fault.action = Fault::Action::kCorrupt;
  fault.corrupt = [](int tag, char* data, size_t) {
    if (tag != kTreeUp) return;
    const uint32_t two = 2;
    const size_t record = offsetof(Record, data);
    std::memcpy(data + kRecords + record, data + kRecords, record);
    std::memcpy(data, &two, sizeof two);
  };
  options.faults[0] = {fault};
  World world(std::move(options));
  world.run([&](int rank, Engine& engine) {
    if (rank == 2) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    std::vector<float> in(5000, 1), out(5000);
    CHECK_OK(finish(engine, allreduce_of("x", in, &out, DType::kFloat32)));
    CHECK_EQ(out[4999], 3.0f);
  });
}

TEST(records_of_the_parent) {
  const size_t type = kRecords + offsetof(Record, type), key = kRecords + offsetof(Record, key);
  const size_t group = kRecords + offsetof(Record, group), bytes = kRecords + offsetof(Record, inline_bytes);
  corrupted(1, kTreeDown, put<uint64_t>(key, 12345), small_allreduce);
  corrupted(1, kTreeDown, put<uint32_t>(type, 0), small_allreduce);    // a parent reports nothing
  corrupted(1, kTreeDown, put<uint32_t>(bytes, 8), small_allreduce);   // less than its result
  corrupted(1, kTreeDown, put<uint32_t>(group, 1'000'000), large_allreduce);
  corrupted(1, kTreeDown, put<uint32_t>(kRecords + offsetof(Record, verdict), 1), large_allreduce);  // no data came along
}

TEST(sizes_of_blocks) {
  for (const int victim : {0, 1})
    for (const int64_t bytes : {int64_t{-8}, int64_t{1} << 60, INT64_MIN}) {
      bool first = true;
      corrupted(victim, Channel::kDirectHeader, put<int64_t>(0, bytes), alltoall);
      corrupted(victim, Channel::kDirect, [&](char* data) { if (std::exchange(first, false)) put<int64_t>(0, bytes)(data); }, allgather);
    }
}

// A rank says how many messages it has sent to a plan that it leaves.
TEST(counts_of_a_left_plan) {
  const int64_t channel = 130;
  const auto body = [channel](int rank, Engine& engine, World& world) {
    const std::vector<BucketSpec> buckets = {{1000, DType::kFloat32}};
    std::shared_ptr<ArenaPlan> plan;
    RR_TRY(engine.add_plan(0, buckets, kOpSum, 1, 1, world.segment("arena", rank, ArenaPlan::segment_bytes(1, buckets)), channel, &plan));
    RR_TRY(engine.leave(plan->id(), "x"));
    const Status status = large_allreduce(rank, engine, world);
    if (!status.is_ok()) return status;
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return large_allreduce(rank, engine, world);
  };
  const int tag = 130 * Channel::kTags + Channel::kLastWords;
  for (const uint32_t sent : {1000u, 0xffffffffu}) corrupted(0, tag, put<uint32_t>(4, sent), body);
}

TEST_MAIN()
