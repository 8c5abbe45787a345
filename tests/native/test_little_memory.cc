// The host's shared memory has no room when an operation needs some: an error on that rank, and no later operation
// of it takes the place of the one that failed.
#include <atomic>
#include <cerrno>

#include <fcntl.h>

#include "world.h"

namespace {
thread_local bool refuses = false;
}

// Instead of the C library's: where memory has a limit, the core reserves it with this.
extern "C" int fallocate(int, int, off_t, off_t) {
  errno = ENOSPC;
  return refuses ? -1 : 0;
}

using namespace ringreduce;

namespace {

// Two engines on a segment of the kind that has a limit.
class Host {
 public:
  Host() {
    const size_t bytes = ProcessSet::segment_bytes(2, kChunk);
    CHECK_OK(Segment::create(Segment::Backing::kPosix, bytes, ProcessSet::reserved_bytes(2, kChunk), &segment_));
  }
  std::unique_ptr<Engine> engine(int rank) const {
    EngineConfig config;
    config.rank = rank;
    config.size = 2;
    config.host_of = {0, 0};
    config.segment = segment_;
    config.oversubscribed = true;
    config.settings.chunk_bytes = kChunk;
    return std::make_unique<Engine>(std::move(config));
  }

 private:
  static constexpr size_t kChunk = 4096;
  std::shared_ptr<Segment> segment_;
};

Status plain(Engine& engine, float* value) {
  const int64_t shape[] = {1};
  PlainCall plain;
  plain.kind = find_kind("allreduce");
  plain.dtype = DType::kFloat32;
  plain.op = kOpSum;
  plain.in = plain.out = reinterpret_cast<char*>(value);
  plain.bytes = plain.room = sizeof *value;
  plain.shape = shape;
  plain.dims = 1;
  OpRef op;
  bool here = false;
  RR_TRY(engine.call(0, plain, &here, &op));
  Status status;
  for (bool done = !op; !done && status.is_ok();) status = engine.wait(*op, 0.5, 0.1, &done);
  return status;
}

Status named(Engine& engine, float* value) {
  std::vector<float> in(1, *value), out(1);
  OpRef op;
  RR_TRY(engine.submit(0, allreduce_of("named", in, &out, DType::kFloat32), true, &op));
  Status status;
  for (bool done = false; !done && status.is_ok();) status = engine.wait(*op, 0.5, 0.1, &done);
  *value = out[0];
  return status;
}

}  // namespace

// Rank 0 has no memory for its first number. Its second must not be added to rank 1's first.
TEST(a_refused_operation_is_not_followed_by_others) {
  for (const auto& first : {plain, named}) {
    Host host;
    std::atomic<bool> refused{false};
    std::thread other([&] {
      const auto engine = host.engine(1);
      while (!refused) std::this_thread::yield();
      float value = 100;
      CHECK(!first(*engine, &value).is_ok());
      engine->close(1);
    });
    const auto engine = host.engine(0);
    refuses = true;
    float value = 1;
    const Status status = first(*engine, &value);
    refuses = false;
    refused = true;
    CHECK(status.code() == Code::kSystem);
    CHECK(status.text().find("of shared memory are needed") != std::string::npos);
    value = 2;
    CHECK(first(*engine, &value).text().find("of shared memory are needed") != std::string::npos);
    other.join();
    engine->close(1);
  }
}

TEST_MAIN()
