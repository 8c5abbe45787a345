// Gradient plans on GPUs, and CUDA graphs of them, on the doubles of CUDA and NCCL: every rank a thread.
#include "gpu_values.h"

using namespace ringreduce;

namespace {

// Several steps of several plans, negotiated operations in between in another order on each rank.
void check_plans(int rank, World& world, Engine& engine, GpuRank& gpu) {
  const int size = world.size();
  std::vector<Buckets> plans = {make_plan(world, rank, engine, gpu, kAverage, 1, 1, 0),
                                make_plan(world, rank, engine, gpu, kOpSum, 0.5, 2, 1)};
  for (int step = 0; step < 5; ++step) {
    std::vector<float*> others;
    std::vector<OpRef> ops;
    for (size_t p = 0; p < plans.size(); ++p)
      for (size_t b = 0; b < kBuckets.size(); ++b) {
        const float* fresh = gpu.upload(values<float>(rank + step, kBuckets[b]));
        CHECK_OK(gpu.device().copy(plans[p].data[b], fresh, kBuckets[b] * sizeof(float), gpu.stream()));
        if (static_cast<int>(b) == rank % 3) {
          others.push_back(gpu.upload(values<float>(rank, 50)));
          ops.push_back(gpu.submit(gpu_submission(find_kind("allreduce"), "between" + std::to_string(p), DType::kFloat32,
                                                  others.back(), others.back(), 50)));
        }
        CHECK_OK(engine.launch(*plans[p].plan, static_cast<int>(b), gpu.stream()));
      }
    for (size_t p = 0; p < plans.size(); ++p) {
      Submission how;
      how.op = p == 0 ? kAverage : kOpSum;
      for (size_t b = 0; b < kBuckets.size(); ++b) {
        wait_for_bucket(engine, *plans[p].plan, static_cast<int>(b), gpu.stream());
        std::vector<float> expected(kBuckets[b]);
        for (size_t i = 0; i < expected.size(); ++i) {
          for (int r = 0; r < size; ++r) expected[i] += value<float>(r + step, i);
          if (p == 0) expected[i] *= static_cast<float>(1.0 / size);
        }
        CHECK(gpu.download<float>(plans[p].data[b], kBuckets[b]) == expected);
      }
      gpu.finish(ops[p]);
      CHECK(gpu.download<float>(others[p], 50) == reduced<float>(size, 50, DType::kFloat32, ops[p]->submission));
    }
  }
  for (Buckets& buckets : plans) engine.remove_plan(buckets.plan);
}

void run_plans(std::shared_ptr<const GpuLibrary> library) {
  for (const auto& hosts : kLayouts) {
    World world(layout(hosts));
    world.run([&](int rank, Engine& engine) {
      GpuRank gpu(engine, rank, library);
      check_plans(rank, world, engine, gpu);
    });
  }
}

TEST(plans_through_nccl) { run_plans(gpu_library()); }
// As NCCL_COMM_BLOCKING=0 makes it.
TEST(plans_where_no_communicator_is_blocking) {
  Doubles::get().set("nccl_comm_blocking", 0);
  run_plans(gpu_library());
  reset_doubles();
}
TEST(plans_through_host_memory) { run_plans(without_nccl()); }

// A step is captured and replayed with other gradients; the first one cannot be, nor an operation that
// the ranks agree on, nor what goes through host memory.
TEST(a_captured_step_is_replayed) {
  for (const auto& hosts : kLayouts) {
    World world(layout(hosts));
    world.run([&](int rank, Engine& engine) {
      GpuRank gpu(engine, rank);
      Doubles& doubles = Doubles::get();
      Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
      const auto step = [&] {
        for (size_t b = 0; b < kBuckets.size(); ++b) CHECK_OK(engine.launch(*buckets.plan, static_cast<int>(b), gpu.stream()));
        for (size_t b = 0; b < kBuckets.size(); ++b) wait_for_bucket(engine, *buckets.plan, static_cast<int>(b), gpu.stream());
      };
      const auto fill = [&](int serial) {
        for (size_t b = 0; b < kBuckets.size(); ++b) {
          const float* fresh = gpu.upload(values<float>(rank + serial, kBuckets[b]));
          CHECK_OK(gpu.device().copy(buckets.data[b], fresh, kBuckets[b] * sizeof(float), gpu.stream()));
        }
      };
      const auto check = [&](int serial) {
        for (size_t b = 0; b < kBuckets.size(); ++b) {
          std::vector<float> expected(kBuckets[b]);
          for (size_t i = 0; i < expected.size(); ++i)
            for (int r = 0; r < world.size(); ++r) expected[i] += value<float>(r + serial, i);
          CHECK(gpu.download<float>(buckets.data[b], kBuckets[b]) == expected);
        }
      };
      CHECK_EQ(doubles.capture_begin(gpu.stream()), 0);
      const Status first = engine.launch(*buckets.plan, 0, gpu.stream());
      CHECK(first.code() == Code::kUnsupported);
      CHECK(first.text().find("the first step cannot be captured") != std::string::npos);
      CHECK(doubles.capture_end(gpu.stream()) != nullptr);

      fill(1);
      step();
      check(1);
      float* other = gpu.upload(values<float>(rank, 3));
      gpu.download<float>(other, 3);  // what the capture uses is there
      CHECK_EQ(doubles.capture_begin(gpu.stream()), 0);
      step();
      OpRef refused;
      Submission s = gpu_submission(find_kind("allreduce"), "agreed on", DType::kFloat32, other, other, 3);
      s.on_gpu = true;
      s.stream = gpu.stream();
      CHECK(engine.submit(0, s, true, &refused).code() == Code::kUnsupported);
      void* graph = doubles.capture_end(gpu.stream());
      CHECK(graph != nullptr);
      for (int replay = 2; replay < 6; ++replay) {
        fill(replay);
        CHECK_EQ(doubles.graph_launch(graph, gpu.stream()), 0);
        check(replay);
      }
      fill(6);
      step();  // as before, outside of the graph
      check(6);
      engine.remove_plan(buckets.plan);
    });
  }
}

TEST(host_memory_is_not_captured) {
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank, without_nccl());
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    CHECK_EQ(Doubles::get().capture_begin(gpu.stream()), 0);
    const Status status = engine.launch(*buckets.plan, 0, gpu.stream());
    CHECK(status.code() == Code::kUnsupported);
    CHECK(status.text().find("through host memory cannot be captured") != std::string::npos);
    CHECK(Doubles::get().capture_end(gpu.stream()) != nullptr);
    engine.remove_plan(buckets.plan);
  });
}

// What is on its way is not written over.
TEST(a_bucket_in_host_memory_is_not_launched_again) {
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank, without_nccl());
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    const float* fresh = gpu.upload(values<float>(rank, kBuckets[0]));
    CHECK_OK(gpu.device().copy(buckets.data[0], fresh, kBuckets[0] * sizeof(float), gpu.stream()));
    if (rank == 1) world.meet();
    CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
    if (rank == 0) {
      const Status status = engine.launch(*buckets.plan, 0, gpu.stream());
      CHECK(status.code() == Code::kInvalid);
      CHECK(status.text().find("gradient bucket 0 is in flight") != std::string::npos);
      world.meet();
    }
    wait_for_bucket(engine, *buckets.plan, 0, gpu.stream());
    CHECK_EQ(gpu.download<float>(buckets.data[0], 1)[0], value<float>(0, 0) + value<float>(1, 0));
    engine.remove_plan(buckets.plan);
  });
}

TEST(plans_on_slow_streams) { on_slow_streams(check_plans); }

// NCCL destroys a communicator only together with the host's other ranks.
TEST(ranks_drop_a_plan_one_after_the_other) {
  reset_doubles();
  World world(layout({0, 0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
    wait_for_bucket(engine, *buckets.plan, 0, gpu.stream());
    for (int turn = 0; turn < world.size(); ++turn) {
      if (turn == rank) {
        engine.remove_plan(buckets.plan);
        buckets.plan.reset();
        while (Doubles::get().count("ncclCommDestroy") <= turn)  // as soon as the engine has seen that the bucket is over
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      float* one = gpu.upload(std::vector<float>{1});
      gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, one, one, 1)));
    }
  });
}

// The thread that makes its communicator ends that.
TEST(a_plan_is_dropped_while_it_is_made) {
  for (const int blocking : {1, 0}) {
    reset_doubles();
    Doubles::get().set("nccl_comm_blocking", blocking);
    Doubles::get().set("nccl_connect_us", 100'000);
    World world(layout({0, 0}));
    world.run([&](int rank, Engine& engine) {
      GpuRank gpu(engine, rank);
      Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
      engine.remove_plan(buckets.plan);
      buckets.plan.reset();
      while (Doubles::get().count("ncclCommAbort") < world.size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  }
}

// A rank leaves in its second step, after some buckets. The step before goes on, on streams that are late; then
// nothing hangs, and a new plan is right.
TEST(a_plan_is_left) {
  for (const bool nccl : {true, false})
    for (const auto& hosts : {std::vector<int>{0, 0}, std::vector<int>{0, 0, 1}, std::vector<int>{0, 1, 2}})
      for (const int leaver : {0, static_cast<int>(hosts.size()) - 1}) {
        reset_doubles();
        World world(layout(hosts));
        world.run([&](int rank, Engine& engine) {
          GpuRank gpu(engine, rank, nccl ? gpu_library() : without_nccl());
          for (int round = 0; round < 5; ++round) {
            Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, round);
            GpuPlan& plan = *buckets.plan;
            const int many = static_cast<int>(plan.bucket_count());
            const int at = round % many;
            Status status;
            for (int step = 0; step < 2 && status.is_ok(); ++step) {
              for (int b = 0; b < (step && rank == leaver ? at : many) && status.is_ok(); ++b) status = engine.launch(plan, b, gpu.stream());
              if (step && rank == leaver) break;
              for (int b = 0; b < many && status.is_ok(); ++b) {
                bool done = false;
                while (!done && status.is_ok()) status = engine.wait_bucket(plan, b, 0.1, &done, 0, gpu.stream());
              }
              if (!step) CHECK_OK(status);
            }
            if (rank == leaver) CHECK_OK(engine.leave(plan.id(), "RuntimeError: out of memory"));
            // Through NCCL all may be enqueued before the news come.
            const int64_t end = now_ns() + check::patience_ns();
            while (status.is_ok() && now_ns() < end) {
              std::this_thread::sleep_for(std::chrono::milliseconds(1));
              status = engine.launch(plan, 0, gpu.stream());
            }
            CHECK(status.code() == Code::kPlanLeft);
            CHECK(status.text().find("rank " + std::to_string(leaver) + " has left the gradient step: RuntimeError: out of memory") == 0);
            gpu.device().cuda().stream_synchronize(plan.stream().get());  // it ends
            engine.remove_plan(buckets.plan);
            world.meet();
          }
          Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 5);
          float* ones = buckets.data[0];
          const std::vector<float> one(kBuckets[0], 1);
          CHECK_OK(gpu.device().copy(ones, one.data(), one.size() * 4, gpu.stream()));
          CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
          wait_for_bucket(engine, *buckets.plan, 0, gpu.stream());
          for (float x : gpu.download<float>(ones, one.size())) CHECK_EQ(x, static_cast<float>(world.size()));
          engine.remove_plan(buckets.plan);
        });
      }
}

// A rank that has heard that another left still owes the others the step before, which its GPU may not have come to;
// buckets that it has launched again meanwhile are lost, but not what they were launched for before.
TEST(a_plan_is_left_while_a_gpu_is_in_the_step_before) {
  reset_doubles();
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    GpuPlan& plan = *buckets.plan;
    const int many = static_cast<int>(plan.bucket_count());
    std::vector<std::vector<float>> sums;
    for (int b = 0; b < many; ++b) {
      sums.emplace_back(kBuckets[b]);
      const float* fresh = gpu.upload(values<float>(rank, kBuckets[b]));
      CHECK_OK(gpu.device().copy(buckets.data[b], fresh, kBuckets[b] * sizeof(float), gpu.stream()));
    }
    if (rank == 1) Doubles::get().stall(plan.stream().get(), 1);
    for (int b = 0; b < many; ++b) CHECK_OK(engine.launch(plan, b, gpu.stream()));
    for (int b = 0; b < many; ++b) {
      wait_for_bucket(engine, plan, b, gpu.stream());
      CHECK_OK(gpu.device().copy(sums[b].data(), buckets.data[b], kBuckets[b] * sizeof(float), gpu.stream()));
    }
    Status status;
    for (int b = 0; rank == 1 && b < many; ++b) CHECK_OK(engine.launch(plan, b, gpu.stream()));
    world.meet();
    if (rank == 0) CHECK_OK(engine.leave(plan.id(), "RuntimeError: out of memory"));
    while (status.is_ok()) status = engine.launch(plan, 0, gpu.stream());
    CHECK(status.code() == Code::kPlanLeft);
    if (rank == 1) Doubles::get().stall(plan.stream().get(), 0);
    CHECK_EQ(gpu.device().cuda().stream_synchronize(gpu.stream()), kCudaSuccess);
    for (int b = 0; b < many; ++b)
      for (size_t i = 0; i < kBuckets[b]; ++i) CHECK_EQ(sums[b][i], value<float>(0, i) + value<float>(1, i));
    CHECK_EQ(gpu.device().cuda().stream_synchronize(plan.stream().get()), kCudaSuccess);  // it ends
    engine.remove_plan(buckets.plan);
  });
}

// What waits for NCCL to connect the ranks is not enqueued once the plan is closed, so the others must not count on it.
TEST(a_plan_is_closed_before_nccl_has_connected_the_ranks) {
  reset_doubles();
  Doubles::get().set("nccl_comm_blocking", 0);  // such a communicator can be given up meanwhile
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    float* one = gpu.upload(std::vector<float>{1});
    gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, one, one, 1)));
    world.meet();
    Doubles::get().set("nccl_connect_us", check::patience_ns() / 1000);  // the plan's communicator never connects
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
    world.meet();
    if (rank == 1) engine.remove_plan(buckets.plan);
    world.meet();
    if (rank == 0) {
      bool done = false;
      const Status status = engine.wait_bucket(*buckets.plan, 0, 0.1, &done, 0, gpu.stream());
      CHECK(status.code() == Code::kPlanLeft);
      CHECK(status.text().find("it has closed the plan before gradient bucket 0 was complete") != std::string::npos);
      engine.remove_plan(buckets.plan);
    }
    while (Doubles::get().count("ncclCommAbort") < world.size()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  reset_doubles();
}

TEST(nothing_was_misused) { reset_doubles(); }

}  // namespace

TEST_MAIN()
