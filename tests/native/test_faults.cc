// What goes wrong in a job: ranks that leave, leave early or never come, threads that wait
// while another shuts the engine down; and schedules that once led to a livelock or a hang.
#include <atomic>
#include <chrono>
#include <functional>

#include "common/clock.h"
#include "world.h"

using namespace ringreduce;

namespace {

constexpr double kLimitS = 1;

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

template <typename Condition>
void wait_until(Condition condition) {
  const int64_t deadline = now_ns() + check::patience_ns();
  while (!condition()) {
    CHECK(now_ns() < deadline);
    sleep_ms(1);
  }
}

Submission sum_of(const std::string& name, std::vector<float>& in, std::vector<float>& out) {
  return allreduce_of(name, in, &out, DType::kFloat32);
}

WorldOptions hosts(std::vector<int> host_of, double delays = 0) {
  WorldOptions options;
  options.host_of = std::move(host_of);
  options.net = {7, delays};
  return options;
}

// Waits like wait_for, but not longer than it takes to be sure.
Status outcome(Engine& engine, const OpRef& op) {
  Status status;
  for (bool done = false; !done && status.is_ok();) status = engine.wait(*op, check::patience_s(), 0.1, &done);
  return status;
}

}  // namespace

// The engine has failed while the net moves an operation's data: what they lie in lives on.
TEST(memory_that_the_net_may_still_touch) {
  int kept = 0;
  for (int64_t nth = 0; nth < 8; ++nth) {
    WorldOptions options = hosts({0, 1});
    Fault fault;
    fault.nth = nth;
    fault.count = Fault::kForever;
    fault.action = Fault::Action::kRefuse;
    options.faults[0] = {fault};
    options.timeout_s = 0.5;
    World world(options);
    world.run([&](int rank, Engine& engine) {
      std::vector<float> in(50'000, 1), out = in;
      OpRef op;
      Status status = engine.submit(0, sum_of("sum", in, out), true, &op);
      for (bool done = false; !done && status.is_ok();) status = engine.wait(*op, 0.5, 0.1, &done);
      if (rank == 0 && op) {
        auto memory = std::make_shared<int>(1);
        const std::weak_ptr<int> lives = memory;
        engine.keep(op, std::move(memory));
        kept += op->kept_for_good && !lives.expired();
      }
      world.meet();
    });
  }
  CHECK(kept > 0);
}

// 300 operations at once take several messages: groups arrive in parts.
TEST(fused_groups_that_span_messages) {
  for (const auto& layout : {std::vector<int>{0, 1}, std::vector<int>{0, 0, 1, 1}, std::vector<int>{0, 1, 2}}) {
    WorldOptions options = hosts(layout, 0.3);
    options.fusion_bytes = 4 << 20;
    World world(options);
    world.run([&](int, Engine& engine) {
      for (int round = 0; round < 3; ++round) {
        constexpr int kMany = 300;
        std::vector<std::vector<float>> in(kMany, std::vector<float>(100, 1)), out = in;
        std::vector<OpRef> ops(kMany);
        for (int i = 0; i < kMany; ++i)
          CHECK_OK(engine.submit(0, sum_of("t" + std::to_string(i), in[i], out[i]), true, &ops[i]));
        for (int i = 0; i < kMany; ++i) {
          CHECK_OK(wait_for(engine, ops[i]));
          CHECK_EQ(out[i][99], static_cast<float>(layout.size()));
        }
      }
    });
  }
}

// Rank 0 is done with its operations before its decisions have left for rank 1.
TEST(decisions_leave_although_nobody_waits) {
  World world(hosts({0, 1}, 1.0));
  std::atomic<int> finished{0};
  world.run([&](int rank, Engine& engine) {
    for (int round = 0; round < 20; ++round) {
      constexpr int kMany = 8;
      std::vector<std::vector<float>> in(kMany, std::vector<float>(4, 1)), out = in;
      std::vector<OpRef> ops(kMany);
      for (int i = 0; i < kMany; ++i) {
        CHECK_OK(engine.submit(0, sum_of("t" + std::to_string(i), in[i], out[i]), true, &ops[i]));
        if (rank) sleep_ms(1);
      }
      for (const OpRef& op : ops) CHECK_OK(wait_for(engine, op));
      if (rank) finished = round + 1;
      wait_until([&] { return finished > round; });
    }
  });
}

// Rank 0 has all its results, and leaves, while most decisions have not left for rank 1: its net takes
// 0.1 s for each message.
TEST(decisions_leave_although_the_root_shuts_down) {
  WorldOptions options = hosts({0, 1});
  options.slow_rank = 1;
  World world(options);
  world.run([&](int, Engine& engine) {
    constexpr int kMany = 300;
    std::vector<std::vector<float>> in(kMany, std::vector<float>(100, 1)), out = in;
    std::vector<OpRef> ops(kMany);
    for (int i = 0; i < kMany; ++i)
      CHECK_OK(engine.submit(0, sum_of("t" + std::to_string(i), in[i], out[i]), true, &ops[i]));
    for (const OpRef& op : ops) CHECK_OK(wait_for(engine, op));
  });
}

TEST(a_bucket_names_the_rank_that_has_shut_down) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(hosts(layout));
    const std::vector<BucketSpec> buckets = {{1000, DType::kFloat32}};
    std::atomic<bool> launched{false};
    world.run([&](int rank, Engine& engine) {
      const int locals = world.hosts() == 1 ? 2 : 1;
      auto arena = world.segment("arena", layout[rank], ArenaPlan::segment_bytes(locals, buckets));
      std::shared_ptr<ArenaPlan> plan;
      CHECK_OK(engine.add_plan(0, buckets, kOpSum, 1, 1, arena, 130, &plan));
      // A farewell between hosts is not sent for long: rank 0 has to be there, and to look often.
      if (rank) return wait_until([&] { return launched.load(); });
      CHECK_OK(engine.launch(*plan, 0));
      launched = true;
      Status status;
      const int64_t start = now_ns();
      for (bool done = false; status.is_ok() && now_ns() - start < check::patience_ns();)
        status = engine.wait_bucket(*plan, 0, 0.005, &done);
      CHECK(status.code() == Code::kPeerLost);
      CHECK(status.text().find("rank 1 has shut down") != std::string::npos);
    });
  }
}

// A wait that counts from something earlier is over at once: but for a pause of a busy machine, and then it is tried
// again. `attempt` returns whether it was.
void at_once(const std::function<bool()>& attempt) {
  for (int tries = 0; !attempt(); ++tries) CHECK(tries < 20);
}

// The first limit counts from the launch, the next one from the next wait, for all buckets that were in flight.
TEST(a_bucket_is_waited_for_again_after_a_time_out) {
  WorldOptions options = hosts({0, 0});
  options.timeout_s = kLimitS;
  at_once([&] {
    World world(options);
    const std::vector<BucketSpec> buckets = {{1000, DType::kFloat32}, {10, DType::kFloat32}};
    auto engine = world.engine(0);
    auto arena = world.segment("arena", 0, ArenaPlan::segment_bytes(2, buckets));
    std::shared_ptr<ArenaPlan> plan;
    CHECK_OK(engine->add_plan(0, buckets, kOpSum, 1, 1, arena, 130, &plan));
    const auto seconds_until_time_out = [&](int bucket) {
      const int64_t start = now_ns();
      Status status;
      for (bool done = false; status.is_ok() && !done;) status = engine->wait_bucket(*plan, bucket, 0.02, &done, start);
      CHECK(status.code() == Code::kTimeout);
      return (now_ns() - start) * 1e-9;
    };
    for (int b : {0, 1}) CHECK_OK(engine->launch(*plan, b));
    sleep_ms(1200);
    const bool was_quick = seconds_until_time_out(0) < kLimitS;
    for (int b : {0, 1, 0}) CHECK(seconds_until_time_out(b) >= kLimitS);
    engine->close(0);
    return was_quick;
  });
}

// The same for an operation, whose new limit its waiter asks for.
TEST(an_operation_is_waited_for_again_after_a_time_out) {
  WorldOptions options = hosts({0, 0});
  options.timeout_s = kLimitS;
  at_once([&] {
    World world(options);
    auto engine = world.engine(0);
    std::vector<float> in(4, 1), out(4);
    OpRef op;
    CHECK_OK(engine->submit(0, sum_of("x", in, out), true, &op));
    const auto seconds_until_time_out = [&](double timeout_s, bool own) {
      const int64_t start = now_ns();
      Status status;
      for (bool done = false; status.is_ok() && !done;)
        status = engine->wait(*op, timeout_s, 0.02, &done, own ? start : 0);
      CHECK(status.code() == Code::kTimeout);
      return (now_ns() - start) * 1e-9;
    };
    sleep_ms(1200);
    const bool was_quick = seconds_until_time_out(-1, false) < kLimitS;
    op->renew();
    CHECK(seconds_until_time_out(-1, false) >= kLimitS);
    CHECK(seconds_until_time_out(0.1, true) >= 0.1);
    engine->close(0);
    return was_quick;
  });
}

// What was given up when a peer left must not count when the name is used again.
TEST(a_retry_after_a_peer_has_left_fails_too) {
  World world(hosts({0, 0, 0}));
  std::atomic<int> stage{0};
  world.run([&](int rank, Engine& engine) {
    if (rank == 2) return;
    std::vector<float> in(4, 1.0f + rank), out(4, -1);
    OpRef op;
    CHECK_OK(engine.submit(0, sum_of("x", in, out), true, &op));
    CHECK(outcome(engine, op).code() == Code::kPeerLost);
    ++stage;
    wait_until([&] { return stage >= 2; });
    if (rank == 0) {
      CHECK_OK(engine.submit(0, sum_of("x", in, out), true, &op));
      CHECK(outcome(engine, op).code() == Code::kPeerLost);
      CHECK_EQ(out[0], -1.0f);
    }
    ++stage;
    wait_until([&] { return stage >= 4; });
  });
}

// A leader whose host completes an operation that the leader itself had given up.
TEST(a_leader_that_gave_up_is_not_surprised) {
  World world(hosts({0, 0, 1}));
  std::atomic<int> stage{0};
  world.run([&](int rank, Engine& engine) {
    if (rank == 2) return;
    std::vector<float> in(4, 1), out(4, -1), more(4, 1), result(4, -1);
    OpRef op, next;
    if (rank == 0) {
      CHECK_OK(engine.submit(0, sum_of("x", in, out), true, &op));
      CHECK(outcome(engine, op).code() == Code::kPeerLost);
      stage = 1;
      wait_until([&] { return stage >= 2; });
      CHECK_OK(engine.submit(0, sum_of("y", more, result), true, &next));
      CHECK(outcome(engine, next).code() == Code::kPeerLost);
    } else {
      wait_until([&] { return stage >= 1; });
      CHECK_OK(engine.submit(0, sum_of("x", in, out), true, &op));
      stage = 2;
      CHECK(outcome(engine, op).code() == Code::kPeerLost);
    }
  });
}

// Rank 2 submits and shuts down at once; rank 1 comes late.
TEST(a_submission_does_not_outlive_its_rank) {
  World world(hosts({0, 0, 0}));
  world.run([&](int rank, Engine& engine) {
    std::vector<float> in(1000, 1), out(1000, -1);
    OpRef op;
    if (rank == 1) sleep_ms(1200);
    CHECK_OK(engine.submit(0, sum_of("x", in, out), true, &op));
    if (rank == 2) return sleep_ms(100);
    CHECK(outcome(engine, op).code() == Code::kPeerLost);
  });
}

TEST(close_while_other_threads_wait) {
  for (int i = 0; i < 100; ++i) {
    World world(hosts({0, 0}));
    world.run([&](int rank, Engine& engine) {
      if (rank) return;
      std::vector<std::thread> threads;
      for (int k = 0; k < 3; ++k)
        threads.emplace_back([&engine, k] {
          std::vector<float> in(4, 1), out(4, -1);
          OpRef op;
          if (!engine.submit(0, sum_of("x" + std::to_string(k), in, out), true, &op).is_ok()) return;
          CHECK(!outcome(engine, op).is_ok());
        });
      sleep_ms(i % 5);
      engine.close(0.01);
      for (std::thread& thread : threads) thread.join();
    });
  }
}

// Three threads of each rank wait for operations of their own, all on one engine.
TEST(several_threads_wait_at_once) {
  World world(hosts({0, 0}));
  world.run([&](int, Engine& engine) {
    std::vector<std::thread> threads;
    for (int k = 0; k < 3; ++k)
      threads.emplace_back([&engine, k] {
        for (int i = 0; i < 500; ++i) {
          std::vector<float> in(100, 1), out(100);
          OpRef op;
          CHECK_OK(engine.submit(0, sum_of("x" + std::to_string(k), in, out), true, &op));
          CHECK_OK(wait_for(engine, op));
          CHECK_EQ(out[99], 2.0f);
        }
      });
    for (std::thread& thread : threads) thread.join();
  });
}

TEST_MAIN()
