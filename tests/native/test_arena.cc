// The two sides of a plan's arena: each rank says with every launch on which one its bucket lies. Sums are right
// wherever the buckets are, and nobody touches the other side: there a program may hold old gradients.
#include <algorithm>
#include <cstring>
#include <random>

#include <sys/stat.h>

#include "world.h"

using namespace ringreduce;

namespace {

const std::vector<std::vector<int>> kLayouts = {{0}, {0, 0}, {0, 0, 0}, {0, 1}, {0, 0, 1}, {0, 1, 1}, {0, 0, 1, 1}, {0, 1, 2}, {0, 0, 1, 1, 2, 2}};
// Of less than a cache line, of one segment, of several, and of another type than its neighbours.
const std::vector<BucketSpec> kBuckets = {{5, DType::kFloat32}, {200'000, DType::kFloat32}, {3000, DType::kInt32}, {401, DType::kFloat32}};
constexpr int kCount = 4, kSteps = 12;

int value(int rank, int step, int bucket, size_t i) { return (rank * 31 + step * 7 + bucket * 3 + static_cast<int>(i % 97)) % 50; }

template <typename T>
void write_values(char* to, int rank, int step, int bucket, size_t count) {
  for (size_t i = 0; i < count; ++i) reinterpret_cast<T*>(to)[i] = static_cast<T>(value(rank, step, bucket, i));
}

template <typename T>
void write_sums(char* to, int ranks, int step, int bucket, size_t count) {
  std::fill_n(reinterpret_cast<T*>(to), count, T{});
  for (int rank = 0; rank < ranks; ++rank)
    for (size_t i = 0; i < count; ++i) reinterpret_cast<T*>(to)[i] += static_cast<T>(value(rank, step, bucket, i));
}

// One rank's buckets, and what must lie on both sides of each.
class Sides {
 public:
  Sides(ArenaPlan& plan, int rank, int ranks) : plan_(plan), rank_(rank), ranks_(ranks) {
    for (int b = 0; b < kCount; ++b)
      for (int side = 0; side < ArenaPlan::kSides; ++side) {
        expected_[b][side].assign(plan.bytes(b), static_cast<char>(16 * rank + 2 * b + side + 1));
        std::memcpy(plan.buffer(b, side), expected_[b][side].data(), plan.bytes(b));
      }
  }
  void fill(int bucket, int side, int step) {
    const auto write = is_float(bucket) ? write_values<float> : write_values<int32_t>;
    write(plan_.buffer(bucket, side), rank_, step, bucket, kBuckets[bucket].count);
  }
  void check(int bucket, int side, int step) {
    const auto write = is_float(bucket) ? write_sums<float> : write_sums<int32_t>;
    write(expected_[bucket][side].data(), ranks_, step, bucket, kBuckets[bucket].count);
    CHECK(plan_.buffer(bucket) == plan_.buffer(bucket, side));
    for (int each = 0; each < ArenaPlan::kSides; ++each)
      CHECK_EQ(std::memcmp(plan_.buffer(bucket, each), expected_[bucket][each].data(), plan_.bytes(bucket)), 0);
  }

 private:
  static bool is_float(int bucket) { return kBuckets[bucket].dtype == DType::kFloat32; }
  ArenaPlan& plan_;
  int rank_, ranks_;
  std::vector<char> expected_[kCount][ArenaPlan::kSides];
};

// On which side the bucket lies.
using Choice = int (*)(int rank, int step, int bucket);

int by_rank(int rank, int, int bucket) { return (rank + bucket) % 2; }
int by_step(int, int step, int) { return step % 2; }
int only_one_turns(int rank, int step, int) { return rank == 0 && step >= kSteps / 2; }
int at_random(int rank, int step, int bucket) {
  return static_cast<int>(std::minstd_rand(static_cast<unsigned>(1 + rank * 10'007 + step * 101 + bucket * 13))() / 7 % 2);
}

// Without a word between steps, so that quick ranks launch the next one while others are still about to see this end.
void train(Engine& engine, ArenaPlan& plan, int rank, int ranks, Choice side_of) {
  Sides sides(plan, rank, ranks);
  for (int step = 0; step < kSteps; ++step) {
    for (int b = 0; b < kCount; ++b) {
      sides.fill(b, side_of(rank, step, b), step);
      CHECK_OK(engine.launch(plan, b, side_of(rank, step, b)));
    }
    for (int b = 0; b < kCount; ++b) {
      bool done = false;
      while (!done) CHECK_OK(engine.wait_bucket(plan, b, 0.1, &done));
      sides.check(b, side_of(rank, step, b), step);
    }
  }
}

std::shared_ptr<ArenaPlan> make_plan(World& world, Engine& engine, int rank, std::shared_ptr<Segment> arena) {
  const auto& host_of = world.host_of();
  const int locals = static_cast<int>(std::count(host_of.begin(), host_of.end(), host_of[rank]));
  if (!arena) arena = world.segment("arena", host_of[rank], ArenaPlan::segment_bytes(locals, kBuckets));
  std::shared_ptr<ArenaPlan> plan;
  CHECK_OK(engine.add_plan(0, kBuckets, kOpSum, 1, 1, arena, 130, &plan));
  return plan;
}

WorldOptions hosts(const std::vector<int>& host_of) {
  WorldOptions options;
  options.host_of = host_of;
  options.net = {5, 0.3};
  return options;
}

}  // namespace

TEST(ranks_on_different_sides) {
  for (const auto& layout : kLayouts)
    for (const Choice side_of : {by_rank, by_step, only_one_turns, at_random}) {
      World world(hosts(layout));
      world.run([&](int rank, Engine& engine) {
        const std::shared_ptr<ArenaPlan> plan = make_plan(world, engine, rank, nullptr);
        train(engine, *plan, rank, world.size(), side_of);
      });
    }
}

// Buckets of all ranks, on both sides, lie apart and within the segment.
TEST(buckets_do_not_overlap) {
  for (const auto& layout : kLayouts) {
    World world(hosts(layout));
    world.run([&](int rank, Engine& engine) {
      const int host = layout[rank], locals = static_cast<int>(std::count(layout.begin(), layout.end(), host));
      auto arena = world.segment("arena", host, ArenaPlan::segment_bytes(locals, kBuckets));
      const std::shared_ptr<ArenaPlan> plan = make_plan(world, engine, rank, arena);
      world.meet();
      for (int side = 0; side < ArenaPlan::kSides; ++side)
        for (int b = 0; b < kCount; ++b) {
          const char* begin = plan->buffer(b, side);
          const char* end = begin + plan->bytes(b);
          CHECK(std::all_of(begin, end, [](char byte) { return byte == 0; }));
          CHECK(begin >= arena->data() && end <= arena->data() + arena->size());
          const bool reserved = end <= arena->data() + ArenaPlan::reserved_bytes(locals, kBuckets);
          CHECK_EQ(reserved, side == 0);
          std::memset(plan->buffer(b, side), 1 + rank, plan->bytes(b));
        }
      world.meet();
      for (int side = 0; side < ArenaPlan::kSides; ++side)
        for (int b = 0; b < kCount; ++b) {
          const char* begin = plan->buffer(b, side);
          CHECK(std::all_of(begin, begin + plan->bytes(b), [rank](char byte) { return byte == 1 + rank; }));
        }
      world.meet();
    });
  }
}

// Where memory has a limit, side 0 is there from the start, and side 1 of a bucket when it is asked for.
TEST(the_other_side_is_reserved_bucket_by_bucket) {
  std::shared_ptr<Segment> arena;
  CHECK_OK(Segment::create(Segment::Backing::kPosix, ArenaPlan::segment_bytes(1, kBuckets), ArenaPlan::reserved_bytes(1, kBuckets), &arena));
  CHECK_OK(arena->reserve(0, ArenaPlan::reserved_bytes(1, kBuckets)));
  const auto allocated = [&arena] {
    struct stat info;
    CHECK_EQ(stat(("/dev/shm" + arena->path().substr(4)).c_str(), &info), 0);
    return static_cast<size_t>(info.st_blocks) * 512;
  };
  World world(hosts({0}));
  world.run([&](int rank, Engine& engine) {
    const std::shared_ptr<ArenaPlan> plan = make_plan(world, engine, rank, arena);
    const size_t before = allocated();
    for (int b = 0; b < kCount; ++b) std::memset(plan->buffer(b, 0), 1, plan->bytes(b));
    CHECK_EQ(allocated(), before);
    CHECK_OK(plan->reserve(1, 1));
    const size_t after = allocated();
    CHECK(after >= before + plan->bytes(1));
    std::memset(plan->buffer(1, 1), 1, plan->bytes(1));
    CHECK_EQ(allocated(), after);
  });
}

// Its data would be reduced twice, or mixed with those of the next step.
TEST(a_bucket_in_flight_is_not_launched_again) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(hosts(layout));
    world.run([&](int rank, Engine& engine) {
      const std::shared_ptr<ArenaPlan> plan = make_plan(world, engine, rank, nullptr);
      Sides sides(*plan, rank, 2);
      sides.fill(0, 1, 3);
      if (rank == 1) world.meet();
      CHECK_OK(engine.launch(*plan, 0, 1));
      if (rank == 0) {
        const Status status = engine.launch(*plan, 0, 0);
        CHECK(status.code() == Code::kInvalid);
        CHECK(status.text().find("gradient bucket 0 is in flight") != std::string::npos);
        world.meet();
      }
      bool done = false;
      while (!done) CHECK_OK(engine.wait_bucket(*plan, 0, 0.1, &done));
      sides.check(0, 1, 3);
    });
  }
}

TEST_MAIN()
