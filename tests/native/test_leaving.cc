// Ranks that leave a gradient plan in the middle of a step: the others hear of it at once, the engine
// goes on, and the next plan, with the same tags, is right.
#include <atomic>
#include <chrono>
#include <random>
#include <set>

#include "common/clock.h"
#include "world.h"

using namespace ringreduce;

namespace {

const std::vector<std::vector<int>> kLayouts = {{0}, {0, 0}, {0, 0, 0}, {0, 1}, {0, 0, 1}, {0, 0, 1, 1}, {0, 1, 2}, {0, 0, 1, 1, 2, 2}};
const std::vector<BucketSpec> kBuckets = {{5, DType::kFloat32}, {200'000, DType::kFloat32}, {3000, DType::kFloat32}};
constexpr int kCount = 3;
const int64_t kAtOnceNs = check::patience_ns() / 3;  // far below the limit of a wait

WorldOptions hosts(std::vector<int> host_of, double delays = 0.3) {
  WorldOptions options;
  options.host_of = std::move(host_of);
  options.net = {11, delays};
  return options;
}

// What the ranks agree on, by the means of the test alone.
class Agreement {
 public:
  explicit Agreement(World& world) : world_(world), offers_(world.size()) {}
  int64_t channel(int rank, Engine& engine) {
    offers_[rank] = engine.offer_channel();
    world_.meet();
    int64_t channel = -1;
    CHECK_OK(PlanChannel::agree(offers_, 0, &channel));
    world_.meet();
    return channel;
  }

 private:
  World& world_;
  std::vector<std::string> offers_;
};

std::shared_ptr<ArenaPlan> make_plan(World& world, Agreement& agreement, int rank, Engine& engine,
                                const std::vector<BucketSpec>& buckets = kBuckets) {
  const int64_t channel = agreement.channel(rank, engine);
  const auto& host_of = world.host_of();
  const int locals = static_cast<int>(std::count(host_of.begin(), host_of.end(), host_of[rank]));
  auto arena = world.segment("arena" + std::to_string(channel), host_of[rank], ArenaPlan::segment_bytes(locals, buckets));
  std::shared_ptr<ArenaPlan> plan;
  CHECK_OK(engine.add_plan(0, buckets, kOpSum, 1, 1, arena, channel, &plan));
  return plan;
}

float value(int rank, int step, size_t i) { return static_cast<float>((rank + 3 * step + static_cast<int>(i % 97)) % 50); }

void fill(ArenaPlan& plan, int bucket, int rank, int step) {
  auto* data = reinterpret_cast<float*>(plan.buffer(bucket));
  for (size_t i = 0; i < plan.bytes(bucket) / 4; ++i) data[i] = value(rank, step, i);
}

void check_sum(ArenaPlan& plan, int bucket, int ranks, int step) {
  const auto* data = reinterpret_cast<const float*>(plan.buffer(bucket));
  for (size_t i = 0; i < plan.bytes(bucket) / 4; ++i) {
    float sum = 0;
    for (int r = 0; r < ranks; ++r) sum += value(r, step, i);
    CHECK_EQ(data[i], sum);
  }
}

Status wait_bucket(Engine& engine, ArenaPlan& plan, int bucket) {
  Status status;
  for (bool done = false; !done && status.is_ok();) status = engine.wait_bucket(plan, bucket, 0.1, &done);
  return status;
}

void whole_step(Engine& engine, ArenaPlan& plan, int rank, int ranks, int step) {
  for (int b = 0; b < kCount; ++b) {
    fill(plan, b, rank, step);
    CHECK_OK(engine.launch(plan, b));
  }
  for (int b = 0; b < kCount; ++b) {
    CHECK_OK(wait_bucket(engine, plan, b));
    check_sum(plan, b, ranks, step);
  }
}

void check_operation(Engine& engine, int ranks) {
  std::vector<float> in(2000, 1), out(2000);
  OpRef op;
  CHECK_OK(engine.submit(0, allreduce_of("beside", in, &out, DType::kFloat32), true, &op));
  CHECK_OK(wait_for(engine, op));
  CHECK_EQ(out[1999], static_cast<float>(ranks));
}

void expect_left(const Status& status, const std::vector<int>& leavers) {
  if (status.code() != Code::kPlanLeft) std::fprintf(stderr, "not left: '%s'\n", status.text().c_str());
  CHECK(status.code() == Code::kPlanLeft);
  bool named = false;
  for (int rank : leavers)
    named = named || status.text() == "rank " + std::to_string(rank) + " has left the gradient step: RuntimeError: out of memory";
  if (!named) std::fprintf(stderr, "%s\n", status.text().c_str());
  CHECK(named);
}

// A step that each of `leavers` leaves after `at` buckets. What a rank is told is complete is right.
void step_with_leavers(Engine& engine, ArenaPlan& plan, int rank, int ranks, const std::vector<int>& leavers, int at) {
  const bool leaves = std::count(leavers.begin(), leavers.end(), rank) > 0;
  const int64_t begun = now_ns();
  Status status;
  int launched = 0;
  for (; launched < (leaves ? at : kCount) && status.is_ok(); ++launched) {
    fill(plan, launched, rank, 1);
    status = engine.launch(plan, launched);
  }
  if (leaves) CHECK_OK(engine.leave(plan.id(), "RuntimeError: out of memory"));
  for (int b = 0; b < kCount && status.is_ok() && !leaves; ++b) {
    status = wait_bucket(engine, plan, b);
    if (status.is_ok()) check_sum(plan, b, ranks, 1);
  }
  if (leaves) status = engine.launch(plan, at);
  expect_left(status, leavers);
  CHECK(now_ns() - begun < kAtOnceNs);
  expect_left(engine.launch(plan, 0), leavers);  // for good
}

}  // namespace

TEST(whoever_waits_hears_at_once_and_the_next_plan_is_right) {
  for (const auto& layout : kLayouts) {
    World world(hosts(layout));
    Agreement agreement(world);
    const int n = world.size();
    std::set<int> slots;
    std::mutex mutex;
    world.run([&](int rank, Engine& engine) {
      std::mt19937 random(17);  // the same on all ranks
      for (int round = 0; round < 200; ++round) {
        std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
        {
          std::lock_guard<std::mutex> lock(mutex);
          slots.insert(PlanChannel::slot(plan->id().channel));
        }
        if (random() % 2) whole_step(engine, *plan, rank, n, 0);
        const std::vector<int> leavers = {static_cast<int>(random() % n), static_cast<int>(random() % n)};
        const int at = static_cast<int>(random() % kCount);
        step_with_leavers(engine, *plan, rank, n, leavers, at);
        if (random() % 2) check_operation(engine, n);
        engine.remove_plan(plan);
      }
      std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
      for (int step = 0; step < 3; ++step) whole_step(engine, *plan, rank, n, step);
      engine.remove_plan(plan);
    });
    CHECK(slots.size() < 20);  // of left plans they are used again
  }
}

TEST(all_leave) {
  for (const auto& layout : kLayouts) {
    World world(hosts(layout));
    Agreement agreement(world);
    std::vector<int> all(world.size());
    for (int i = 0; i < world.size(); ++i) all[i] = i;
    world.run([&](int rank, Engine& engine) {
      for (int round = 0; round < 200; ++round) {
        std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine, {{5, DType::kFloat32}, {20'000, DType::kFloat32}, {30, DType::kFloat32}});
        step_with_leavers(engine, *plan, rank, world.size(), all, round % kCount);
        engine.remove_plan(plan);
      }
      check_operation(engine, world.size());
    });
  }
}

// Peers sleep in a wait already, and nothing else is going on.
TEST(sleepers_hear_of_it) {
  for (const auto& layout : kLayouts) {
    if (layout.size() == 1) continue;
    const int last = static_cast<int>(layout.size()) - 1;
    for (const int leaver : {0, last}) {
      World world(hosts(layout, 0));
      Agreement agreement(world);
      std::atomic<int64_t> left_ns{0};
      world.run([&](int rank, Engine& engine) {
        std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
        if (rank == leaver) {
          std::this_thread::sleep_for(std::chrono::milliseconds(300));
          left_ns = now_ns();
          CHECK_OK(engine.leave(plan->id(), "RuntimeError: out of memory"));
        } else {
          Status status = engine.launch(*plan, 0);
          CHECK_OK(status);
          bool done = false;
          status = engine.wait_bucket(*plan, 0, 30, &done);  // one slice: nobody looks for farewells meanwhile
          expect_left(status, {leaver});
          CHECK(now_ns() - left_ns < kAtOnceNs);  // a few ms where there are cores
        }
        world.meet();
        engine.remove_plan(plan);
      });
    }
  }
}

// The plan of rank 0 lives until its messages have arrived, though nobody holds it.
TEST(a_removed_plan_keeps_its_memory_until_its_messages_are_over) {
  World world(hosts({0, 1}, 0));
  Agreement agreement(world);
  std::atomic<bool> removed{false};
  world.run([&](int rank, Engine& engine) {
    std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
    if (rank == 0) {
      CHECK_OK(engine.launch(*plan, 0));
      CHECK_OK(engine.launch(*plan, 1));
      const std::weak_ptr<ArenaPlan> ghost = plan;
      engine.remove_plan(plan);
      plan.reset();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      CHECK(!ghost.expired());
      removed = true;
      const int64_t end = now_ns() + kAtOnceNs;
      while (!ghost.expired() && now_ns() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      CHECK(ghost.expired());
    } else {
      while (!removed) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Status status = engine.launch(*plan, 0);
      if (status.is_ok()) status = wait_bucket(engine, *plan, 0);
      if (status.is_ok()) status = engine.launch(*plan, 1);
      if (status.is_ok()) status = wait_bucket(engine, *plan, 1);
      if (status.is_ok()) status = engine.launch(*plan, 2);
      if (status.is_ok()) status = wait_bucket(engine, *plan, 2);
      CHECK(status.code() == Code::kPlanLeft);
      CHECK(status.text().find("rank 0 has left the gradient step: it has closed the plan before gradient bucket ") != std::string::npos);
      engine.remove_plan(plan);
    }
  });
}

// The peer never comes: the message is not over when the engine closes.
TEST(closing_keeps_the_memory_of_messages_on_their_way) {
  for (const bool remove : {false, true}) {
    World world(hosts({0, 1}, 0));
    Agreement agreement(world);
    world.run([&](int rank, Engine& engine) {
      std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
      if (rank == 0) {
        CHECK_OK(engine.launch(*plan, 0));
        const std::weak_ptr<ArenaPlan> ghost = plan;
        if (remove) engine.remove_plan(plan);
        plan.reset();
        engine.close(0.05);
        CHECK(!ghost.expired());
      }
      world.meet();
    });
  }
}

// A rank that is through with its plan may not know that others were still in it.
TEST(a_plan_is_left_by_those_that_are_still_in_it) {
  World world(hosts({0, 1}));
  Agreement agreement(world);
  world.run([&](int rank, Engine& engine) {
    for (int round = 0; round < 30; ++round) {
      std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
      whole_step(engine, *plan, rank, 2, 0);
      if (rank == round % 2) {
        engine.remove_plan(plan);
      } else {
        CHECK_OK(engine.launch(*plan, 0));
        CHECK_OK(engine.launch(*plan, 1));
        engine.remove_plan(plan);
      }
      if (round % 3 == 0) check_operation(engine, 2);
    }
    const std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
    whole_step(engine, *plan, rank, 2, 0);
  });
}

// Rank 2 reduces nothing itself, and comes to look when its bucket is complete and its peers have left already.
TEST(a_rank_that_hears_late_of_an_end_closes_at_once) {
  World world(hosts({0, 1, 1}, 0));
  Agreement agreement(world);
  world.run([&](int rank, Engine& engine) {
    std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine);
    if (rank == 2) {
      std::vector<float> in(10), out(10);
      OpRef pending;
      CHECK_OK(engine.submit(0, allreduce_of("of rank 2 alone", in, &out, DType::kFloat32), true, &pending));
      CHECK_OK(engine.launch(*plan, 0));
      engine.keep(pending, std::shared_ptr<void>(&world, [](void* of) {  // with the engine's mutex held
        static_cast<World*>(of)->meet();  // it has launched
        static_cast<World*>(of)->meet();  // the others have left
      }));
      engine.keep(pending, nullptr);
      CHECK_OK(wait_bucket(engine, *plan, 0));
      const int64_t begun = now_ns();
      engine.close(3 * kAtOnceNs * 1e-9);
      CHECK(now_ns() - begun < kAtOnceNs);
    } else {
      world.meet();
      CHECK_OK(engine.launch(*plan, 0));
      CHECK_OK(wait_bucket(engine, *plan, 0));
      if (rank == 0) CHECK_OK(engine.leave(plan->id(), "RuntimeError: out of memory"));
      Status status = engine.launch(*plan, 1);
      if (status.is_ok()) status = wait_bucket(engine, *plan, 1);
      expect_left(status, {0});
      world.meet();
    }
  });
}

TEST(more_plans_than_there_are_tags) {
  World world(hosts({0, 1}, 0));
  Agreement agreement(world);
  const std::vector<BucketSpec> small = {{5, DType::kFloat32}, {9, DType::kFloat32}, {1, DType::kFloat32}};
  world.run([&](int rank, Engine& engine) {
    for (int round = 0; round < 2000; ++round) {
      std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine, small);
      if (round % 2) step_with_leavers(engine, *plan, rank, 2, {round / 2 % 2}, round % 3);
      engine.remove_plan(plan);
    }
    const std::shared_ptr<ArenaPlan> plan = make_plan(world, agreement, rank, engine, small);
    whole_step(engine, *plan, rank, 2, 0);
  });
}

TEST(channels) {
  PlanChannel::Offer offer, back;
  offer.serial = 12;
  offer.used.set(PlanChannel::kFirst);
  CHECK_OK(PlanChannel::Offer::read(offer.text(), &back));
  CHECK(back.serial == 12 && back.used == offer.used);
  for (const std::string& bad : {std::string(), std::string(":"), std::string("12"), offer.text() + "0", "x" + offer.text(),
                                 "99999999999999999" + offer.text()})
    CHECK(!PlanChannel::Offer::read(bad, &back).is_ok());
  int64_t channel = 0;
  CHECK_OK(PlanChannel::agree({offer.text(), PlanChannel::Offer().text()}, 0, &channel));
  CHECK_EQ(PlanChannel::slot(channel), PlanChannel::kFirst + 1);
  CHECK_EQ(PlanChannel::serial(channel), int64_t{13});
  offer.used.set();
  CHECK(PlanChannel::agree({offer.text()}, 0, &channel).code() == Code::kInvalid);
}

TEST_MAIN()
