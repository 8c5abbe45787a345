// What crosses between hosts, counted: data and nothing beside it, and no more of it than the
// algorithms promise.
#include <vector>

#include "common/settings.h"
#include "world.h"

using namespace ringreduce;

namespace {

void wait_bucket(Engine& engine, ArenaPlan& plan, int bucket) {
  for (bool done = false; !done;) CHECK_OK(engine.wait_bucket(plan, bucket, 1, &done));
}

}  // namespace

// A bucket is launched three times: every message must be one of the ring's.
TEST(a_planned_bucket_sends_no_message_beside_its_data) {
  struct Case {
    std::vector<int> hosts;
    int rails;
  };
  constexpr size_t kBytes = 12 << 20;
  constexpr int kSteps = 3;
  for (const Case& test : {Case{{0, 1}, 1}, Case{{0, 0, 1, 1}, 2}, Case{{0, 1, 2, 3}, 1}, Case{{0, 1, 1, 1}, 1}}) {
    std::vector<Traffic> traffic(test.hosts.size());
    WorldOptions options;
    options.host_of = test.hosts;
    options.traffic = &traffic;
    World world(options);
    const std::vector<BucketSpec> buckets = {{kBytes / 4, DType::kFloat32}};
    world.run([&](int rank, Engine& engine) {
      int locals = 0;
      for (int host : test.hosts) locals += host == test.hosts[rank];
      auto arena = world.segment("arena", test.hosts[rank], ArenaPlan::segment_bytes(locals, buckets));
      std::shared_ptr<ArenaPlan> plan;
      CHECK_OK(engine.add_plan(0, buckets, kOpSum, 1, 1, arena, 130, &plan));
      const Counts before = traffic[rank].counts();
      for (int step = 0; step < kSteps; ++step) {
        CHECK_OK(engine.launch(*plan, 0));
        wait_bucket(engine, *plan, 0);
      }
      const Counts after = traffic[rank].counts();
      world.meet();  // or what a rank sends that shuts down already counts, too
      const int hosts = world.hosts();
      const size_t slice_bytes = kBytes / test.rails;
      const int segments = static_cast<int>(divide_up(slice_bytes, kMessageBytes * hosts));
      const bool rail = after.sends != before.sends;
      CHECK_EQ(after.sends - before.sends, rail ? kSteps * segments * 2 * (hosts - 1) : 0);
      // 2(H-1)/H of the slice, but for the rounding of its parts to whole cache lines.
      const double least = kSteps * 2.0 * (hosts - 1) / hosts * slice_bytes;
      const auto sent = static_cast<double>(after.sent_bytes - before.sent_bytes);
      CHECK(!rail || (sent >= 0.999 * least && sent <= 1.001 * least));
      engine.remove_plan(plan);
    });
    int rails = 0;
    for (const Traffic& one : traffic) rails += one.sent_bytes > kBytes / 8;
    CHECK_EQ(rails, test.rails * world.hosts());
  }
}

// An operation of a few bytes travels with its negotiation: one message up, one down.
TEST(a_small_allreduce_needs_two_messages_a_host) {
  std::vector<Traffic> traffic(4);
  WorldOptions options;
  options.host_of = {0, 1, 2, 3};
  options.tree_arity = 8;
  options.traffic = &traffic;
  World world(options);
  constexpr int kOperations = 10;
  world.run([&](int rank, Engine& engine) {
    const Counts before = traffic[rank].counts();
    for (int i = 0; i < kOperations; ++i) {
      std::vector<float> in(1, 1), out(1);
      OpRef op;
      CHECK_OK(engine.submit(0, allreduce_of("", in, &out, DType::kFloat32), true, &op));
      CHECK_OK(wait_for(engine, op));
      CHECK_EQ(out[0], 4.0f);
    }
    const Counts after = traffic[rank].counts();
    world.meet();
    CHECK_EQ(after.sends - before.sends, kOperations * (rank == 0 ? 3 : 1));
  });
}

TEST_MAIN()
