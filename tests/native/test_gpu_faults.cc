// What goes wrong on GPUs ends on every rank, with an error that says what and where: on the doubles
// of CUDA and NCCL, every rank a thread.
#include <atomic>
#include <chrono>

#include "common/clock.h"
#include "gpu_world.h"

using namespace ringreduce;

namespace {

constexpr double kTimeoutS = 1;
constexpr int kSystemError = 2, kRemoteError = 6;  // NCCL's

struct Case {
  std::vector<int> host_of = {0, 0, 0};
  std::shared_ptr<const GpuLibrary> library = gpu_library();
  double timeout_s = kTimeoutS;
};

template <typename Body>
void on_ranks(const Case& how, Body body) {
  WorldOptions options;
  options.host_of = how.host_of;
  options.timeout_s = how.timeout_s;
  World world(std::move(options));
  const int64_t begun = now_ns();
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank, how.library);
    body(rank, world, engine, gpu);
  });
  CHECK(now_ns() - begun < check::patience_ns());
  reset_doubles();
}

bool has(const Status& status, const std::string& text) {
  if (!status.is_ok() && status.text().find(text) != std::string::npos) return true;
  std::fprintf(stderr, "expected '%s' in: %s\n", text.c_str(), status.text().c_str());
  return false;
}

float* ones(GpuRank& gpu) { return gpu.upload(std::vector<float>(4, 1)); }
Submission sum(const std::string& name, float* data) {
  return gpu_submission(find_kind("allreduce"), name, DType::kFloat32, data, data, 4);
}

// With the deadline of the settings.
Status finish(Engine& engine, const OpRef& op) {
  for (bool done = false; !done;) RR_TRY(engine.wait(*op, -1, 0.2, &done));
  return op->status;
}

// Submits until it is refused: the engine has broken with nobody waiting for anything. `or_late`: or until
// an operation has passed its deadline, which is all that a rank sees of another one's fault.
Status when_broken(Engine& engine, GpuRank& gpu, bool or_late = false) {
  for (const int64_t end = now_ns() + check::patience_ns(); now_ns() < end;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    Submission s = sum("", ones(gpu));
    s.on_gpu = true;
    s.stream = gpu.stream();
    OpRef op;
    const Status status = engine.submit(0, s, true, &op);
    if (!status.is_ok()) return status;
    const Status done = finish(engine, op);
    if (!done.is_ok() && (or_late || done.code() != Code::kTimeout)) return done;
  }
  return Status::ok();
}

Status wait_for_status(Engine& engine, GpuPlan& plan, int bucket, void* stream) {
  for (bool done = false; !done;) RR_TRY(engine.wait_bucket(plan, bucket, 0.2, &done, 0, stream));
  return Status::ok();
}

Status finish_all(Engine& engine, GpuPlan& plan, void* stream) {
  for (size_t b = 0; b < kBuckets.size(); ++b) RR_TRY(wait_for_status(engine, plan, static_cast<int>(b), stream));
  return Status::ok();
}

void steps(int count, Engine& engine, GpuPlan& plan, void* stream) {
  for (int step = 0; step < count; ++step) {
    for (size_t b = 0; b < kBuckets.size(); ++b) CHECK_OK(engine.launch(plan, static_cast<int>(b), stream));
    CHECK_OK(finish_all(engine, plan, stream));
  }
}

// Nobody drives the engine then: the background thread has to see it.
TEST(a_hang_after_the_call_returned_is_found) {
  on_ranks({}, [](int rank, World&, Engine& engine, GpuRank& gpu) {
    gpu.finish(gpu.submit(sum("first", ones(gpu))));
    if (rank == 1) Doubles::get().fail("nccl_hang", 1, 0, rank);
    gpu.finish(gpu.submit(sum("stuck", ones(gpu))));
    const int64_t begun = now_ns();
    CHECK_EQ(gpu.device().cuda().stream_synchronize(gpu.stream()), kCudaSuccess);  // ended by the abort
    CHECK(now_ns() - begun < check::patience_ns());
    CHECK(has(when_broken(engine, gpu), "stuck"));
  });
}

TEST(an_asynchronous_error_in_a_bucket) {
  for (const bool remote : {false, true}) {
    Doubles::get().set("nccl_remote_errors", remote);
    on_ranks({}, [remote](int rank, World& world, Engine& engine, GpuRank& gpu) {
      Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
      steps(2, engine, *buckets.plan, gpu.stream());
      if (rank == 1) Doubles::get().fail("nccl_async", kRemoteError, 1, rank);
      Status status;
      for (size_t b = 0; b < kBuckets.size() && status.is_ok(); ++b)
        status = engine.launch(*buckets.plan, static_cast<int>(b), gpu.stream());
      if (status.is_ok()) status = finish_all(engine, *buckets.plan, gpu.stream());
      if (status.is_ok()) status = when_broken(engine, gpu);
      // Rank 1 then aborts its communicators: the others may see that first, in what they do meanwhile.
      const bool of_another = remote && rank != 1 && status.text().find("closed its connection") != std::string::npos;
      CHECK(of_another || has(status, "gradient bucket"));
      engine.remove_plan(buckets.plan);
    });
  }
}

// The ranks are connected when the plan is made: the bucket is on the GPU when it hangs, in the first step, too.
TEST(a_rank_does_not_launch_a_bucket) {
  for (const auto& library : {gpu_library(), without_nccl()})
    for (const int before : {0, 2}) {
      const bool host = !library->nccl_version;
      on_ranks({{0, 0, 0}, library}, [&](int rank, World& world, Engine& engine, GpuRank& gpu) {
        Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
        steps(before, engine, *buckets.plan, gpu.stream());
        if (rank != 1) {
          CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
          Status status = wait_for_status(engine, *buckets.plan, 0, gpu.stream());
          if (!host) {
            CHECK_OK(status);
            status = when_broken(engine, gpu);
            CHECK(has(status, "gradient bucket 0 (ranks 0, 1, 2) has not finished on the GPU in 1"));
          } else {
            CHECK(has(status, "gradient bucket 0 cannot complete"));
            CHECK(has(status, "in host memory: rank 1 has launched bucket 0 "));
            // or: a rank that has given up before
            CHECK(status.text().find("no progress for 1") != std::string::npos || has(status, "has shut down"));
          }
        }
        world.meet();  // rank 1 is there as long as the others wait for it
        engine.remove_plan(buckets.plan);
      });
    }
}

// It says goodbye: while the host has to wait for it, nobody waits for the deadline. On a busy machine the deadline
// may pass before a rank hears of it: then all is done again with a later one.
TEST(a_rank_shuts_down_before_a_bucket) {
  for (const auto& library : {gpu_library(), without_nccl()}) {
    std::atomic<bool> is_late{true};
    for (double timeout_s = kTimeoutS; is_late; timeout_s *= 4) {
      is_late = false;
      on_ranks({{0, 0, 0}, library, timeout_s}, [&](int rank, World& world, Engine& engine, GpuRank& gpu) {
        Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
        if (rank != 1) {
          CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
          Status status = wait_for_status(engine, *buckets.plan, 0, gpu.stream());
          if (library->nccl_version && status.is_ok()) status = when_broken(engine, gpu);  // it is on the GPU already
          if (timeout_s < check::patience_s() && status.text().find(" has not finished on the GPU in ") != std::string::npos)
            is_late = true;
          else CHECK(has(status, "has shut down"));
        }
        engine.remove_plan(buckets.plan);
      });
    }
  }
}

// One rank fails in it, the others wait for it within NCCL, on a thread that is left behind.
TEST(the_ranks_of_a_plan_are_not_connected) {
  on_ranks({}, [](int rank, World& world, Engine& engine, GpuRank& gpu) {
    gpu.finish(gpu.submit(sum("first", ones(gpu))));
    if (rank == 1) Doubles::get().fail("ncclCommInitRankConfig", kSystemError, 0, rank);
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    Status status = engine.launch(*buckets.plan, 0, gpu.stream());
    if (status.is_ok()) status = wait_for_status(engine, *buckets.plan, 0, gpu.stream());
    CHECK(has(status, "gradient bucket 0"));
    CHECK(has(status, rank == 1 ? "ncclCommInitRankConfig failed: unhandled system error" : "NCCL to connect the ranks") ||
          has(status, "has shut down"));
    engine.remove_plan(buckets.plan);
  });
}

// The others wait for it within NCCL, and give up: then all go through host memory.
TEST(a_communicator_cannot_be_made_on_one_rank) {
  Doubles::get().fail("ncclCommInitRankConfig", kSystemError, 0, 1);
  on_ranks({}, [](int, World& world, Engine& engine, GpuRank& gpu) {
    float* data = ones(gpu);
    gpu.finish(gpu.submit(sum("first", data)));
    CHECK(gpu.download<float>(data, 4) == std::vector<float>(4, static_cast<float>(world.size())));
    GpuPath path;
    std::string why;
    CHECK_OK(engine.gpu_path(0, &path, &why));
    CHECK(path == GpuPath::kHost);
    CHECK_EQ(why, "on rank 1 ncclCommInitRankConfig failed: unhandled system error: a failure that a test ordered");
  });
}

TEST(a_communicator_cannot_be_split_on_one_rank) {
  Doubles::get().fail("ncclCommSplit", kSystemError, 0, 1);
  on_ranks({}, [](int rank, World& world, Engine& engine, GpuRank& gpu) {
    gpu.finish(gpu.submit(sum("first", ones(gpu))));
    const std::vector<int> members = {0, 1};
    if (rank < 2) CHECK_OK(engine.add_set(1, members, world.set_segment("set", rank, members)));
    OpRef split;
    CHECK_OK(engine.submit_split(1, &split));
    CHECK_OK(finish(engine, split));
    for (const int set : {1, 0}) {
      if (set && rank == 2) continue;
      float* data = ones(gpu);
      gpu.finish(gpu.submit(sum("again", data), set));
      CHECK(gpu.download<float>(data, 4) == std::vector<float>(4, set ? 2.0f : 3.0f));
      GpuPath path;
      std::string why;
      CHECK_OK(engine.gpu_path(set, &path, &why));
      CHECK(path == GpuPath::kNccl);
    }
  });
}

// CUDA itself fails on one rank; the others miss it.
TEST(cuda_fails) {
  for (const char* function : {"event_record", "stream_wait_event", "malloc_async", "event_query"}) {
    on_ranks({}, [&](int rank, World&, Engine& engine, GpuRank& gpu) {
      gpu.finish(gpu.submit(sum("first", ones(gpu))));
      float* data = ones(gpu);
      gpu.download<float>(data, 4);
      Submission s = gpu_submission(find_kind("allgather"), "broken", DType::kFloat32, data, nullptr, 4);
      s.on_gpu = true;
      s.stream = gpu.stream();
      if (rank == 1) Doubles::get().fail(function, 700, 0, rank);
      OpRef op;
      Status status = engine.submit(0, s, true, &op);
      if (status.is_ok()) status = finish(engine, op);
      if (status.is_ok()) status = when_broken(engine, gpu, rank != 1);
      if (rank == 1) CHECK(has(status, "an illegal memory access was encountered"));
      else CHECK(!status.is_ok());
    });
  }
}

}  // namespace

TEST_MAIN()
