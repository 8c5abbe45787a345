// The engine's GPU path end to end on the doubles of CUDA and NCCL: every rank a thread.
#include <numeric>
#include <random>

#include "gpu/nccl_types.h"
#include "gpu_world.h"

using namespace ringreduce;

namespace {

WorldOptions layout(const std::vector<int>& host_of) {
  WorldOptions options;
  options.host_of = host_of;
  options.net = {host_of.size() * 7 + 1, 0.3};
  return options;
}

const std::vector<std::vector<int>> kLayouts = {{0}, {0, 0}, {0, 0, 0}, {0, 0, 0, 0}, {0, 1}, {0, 0, 1, 1}, {0, 1, 1}};

// Runs body(rank, size, engine, gpu) on all ranks of every layout.
template <typename Body>
void everywhere(Body body, std::shared_ptr<const GpuLibrary> library = gpu_library(), bool one_gpu = false) {
  for (const auto& hosts : kLayouts) {
    World world(layout(hosts));
    world.run([&](int rank, Engine& engine) {
      GpuRank gpu(engine, rank, library, one_gpu ? 0 : -1);
      body(rank, world.size(), engine, gpu);
    });
  }
}

template <typename T>
T value(int rank, size_t i) {
  return static_cast<T>((i * 7 + rank * 13) % 11) + 1;
}
template <typename T>
std::vector<T> values(int rank, size_t count) {
  std::vector<T> all(count);
  for (size_t i = 0; i < count; ++i) all[i] = value<T>(rank, i);
  return all;
}

// What the CPU's kernels make of all ranks' values.
template <typename T>
std::vector<T> reduced(int size, size_t count, DType dtype, const Submission& s) {
  std::vector<std::vector<T>> inputs;
  std::vector<const void*> sources;
  for (int rank = 0; rank < size; ++rank) inputs.push_back(values<T>(rank, count));
  for (const auto& input : inputs) sources.push_back(input.data());
  std::vector<T> result(count);
  void* dst[] = {result.data()};
  reduce(dtype, s.reduction(), {dst, 1, sources.data(), size, count, s.scale(size)});
  return result;
}

template <typename T>
void check_allreduce(int size, int rank, GpuRank& gpu, DType dtype, int op, double pre, double post, size_t count) {
  const T* in = gpu.upload(values<T>(rank, count));
  T* out = gpu.upload(std::vector<T>(count));
  Submission s = gpu_submission(Kind::kAllreduce, "", dtype, in, out, count);
  s.op = op;
  s.prescale = pre;
  s.postscale = post;
  gpu.finish(gpu.submit(s));
  const std::vector<T> got = gpu.download<T>(out, count), expected = reduced<T>(size, count, dtype, s);
  for (size_t i = 0; i < count; ++i) CHECK_EQ(+got[i], +expected[i]);
}

void check_all_collectives(int rank, int size, GpuRank& gpu) {
  for (int op : {kAverage, kOpSum, kOpMin, kOpMax, kOpProduct}) {
    check_allreduce<float>(size, rank, gpu, DType::kFloat32, op, 1, 1, 1000);
    check_allreduce<double>(size, rank, gpu, DType::kFloat64, op, 2, 0.5, 7);
    check_allreduce<int32_t>(size, rank, gpu, DType::kInt32, op, 1, 1, 33);
    check_allreduce<int16_t>(size, rank, gpu, DType::kInt16, op, 1, 1, 65);  // NCCL lacks it
    check_allreduce<uint8_t>(size, rank, gpu, DType::kUint8, op, 1, 1, 5);
  }
  check_allreduce<int64_t>(size, rank, gpu, DType::kInt64, kOpSum, 3, 1, 100);  // scaled before the sum
  check_allreduce<float>(size, rank, gpu, DType::kFloat32, kOpSum, 1, 1, 0);
  check_allreduce<float>(size, rank, gpu, DType::kFloat32, kOpSum, 4, 0.25, 100000);
}

// broadcast from each root
void check_broadcast(int rank, int size, GpuRank& gpu) {
  for (int root = 0; root < size; ++root) {
    const float* in = gpu.upload(values<float>(rank, 77));
    float* out = gpu.upload(std::vector<float>(77));
    Submission s = gpu_submission(Kind::kBroadcast, "", DType::kFloat32, in, out, 77);
    s.root = root;
    gpu.finish(gpu.submit(s));
    CHECK(gpu.download<float>(out, 77) == values<float>(root, 77));
  }
}

void check_allgather(int rank, int size, GpuRank& gpu, bool even) {
  const auto count = [&](int of) { return even ? size_t{6} : size_t(of) * 5; };  // uneven: rank 0 has nothing
  const float* in = gpu.upload(values<float>(rank, count(rank)));
  Submission s = gpu_submission(Kind::kAllgather, "", DType::kFloat32, in, nullptr, count(rank));
  s.shape = {};
  const OpRef op = gpu.submit(s);
  gpu.finish(op);
  std::vector<float> expected;
  for (int from = 0; from < size; ++from) {
    CHECK_EQ(op->output.counts[from], static_cast<int64_t>(count(from) * sizeof(float)));
    const auto part = values<float>(from, count(from));
    expected.insert(expected.end(), part.begin(), part.end());
  }
  CHECK_EQ(op->output.bytes, expected.size() * sizeof(float));
  CHECK(gpu.download<float>(op->gpu->output.get(), expected.size()) == expected);
}

void check_reducescatter(int rank, int size, GpuRank& gpu, bool even, int op) {
  std::vector<size_t> counts;
  size_t total = 0, begin = 0;
  for (int to = 0; to < size; ++to) {
    if (to == rank) begin = total;
    counts.push_back(even ? 8 : to * 3);
    total += counts.back();
  }
  const float* in = gpu.upload(values<float>(rank, total));
  float* out = gpu.upload(std::vector<float>(counts[rank]));
  Submission s = gpu_submission(Kind::kReducescatter, "", DType::kFloat32, in, out, total);
  s.op = op;
  s.prescale = 2;
  for (size_t each : counts) s.counts.push_back(static_cast<int64_t>(each * sizeof(float)));
  gpu.finish(gpu.submit(s));
  const auto all = reduced<float>(size, total, DType::kFloat32, s);
  const std::vector<float> own(all.begin() + begin, all.begin() + begin + counts[rank]);
  CHECK(gpu.download<float>(out, own.size()) == own);
}

void check_alltoall(int rank, int size, GpuRank& gpu) {
  // rank r sends r + to elements of value 100 r + to
  std::vector<float> in, expected;
  Submission s = gpu_submission(Kind::kAlltoall, "", DType::kFloat32, nullptr, nullptr, 0);
  s.shape = {};
  for (int to = 0; to < size; ++to) {
    in.insert(in.end(), rank + to, 100.0f * rank + to);
    s.counts.push_back((rank + to) * sizeof(float));
    expected.insert(expected.end(), to + rank, 100.0f * to + rank);
  }
  s.pieces = {{reinterpret_cast<const char*>(gpu.upload(in)), nullptr, in.size() * sizeof(float)}};
  const OpRef op = gpu.submit(s);
  gpu.finish(op);
  CHECK(gpu.download<float>(op->gpu->output.get(), expected.size()) == expected);
}

void check_grouped(int rank, int size, GpuRank& gpu) {
  Submission s = gpu_submission(Kind::kAllreduce, "group", DType::kFloat32, nullptr, nullptr, 0);
  s.pieces.clear();
  std::vector<float*> outs;
  for (size_t count : {1, 17, 0, 300}) {
    const float* in = gpu.upload(values<float>(rank, count));
    outs.push_back(gpu.upload(std::vector<float>(count)));
    s.pieces.push_back({reinterpret_cast<const char*>(in), reinterpret_cast<char*>(outs.back()), count * sizeof(float)});
  }
  gpu.finish(gpu.submit(s));
  size_t i = 0;
  for (size_t count : {1, 17, 0, 300})
    CHECK(gpu.download<float>(outs[i++], count) == reduced<float>(size, count, DType::kFloat32, s));
}

void check_everything(int rank, int size, Engine&, GpuRank& gpu) {
  check_all_collectives(rank, size, gpu);
  check_broadcast(rank, size, gpu);
  check_allgather(rank, size, gpu, true);
  check_allgather(rank, size, gpu, false);
  for (int op : {kAverage, kOpSum, kOpMax}) {
    check_reducescatter(rank, size, gpu, true, op);
    check_reducescatter(rank, size, gpu, false, op);
  }
  check_alltoall(rank, size, gpu);
  check_grouped(rank, size, gpu);
}

void check_path(Engine& engine, GpuPath expected, const std::string& why_expected) {
  GpuPath path;
  std::string why;
  CHECK_OK(engine.gpu_path(0, &path, &why));
  CHECK(path == expected);
  CHECK_EQ(why, why_expected);
}

TEST(collectives_through_nccl) {
  everywhere([](int rank, int size, Engine& engine, GpuRank& gpu) {
    check_everything(rank, size, engine, gpu);
    check_path(engine, GpuPath::kNccl, "");
  });
}

TEST(collectives_through_host_memory) {
  everywhere([](int rank, int size, Engine& engine, GpuRank& gpu) {
    check_everything(rank, size, engine, gpu);
    if (size > 1) check_path(engine, GpuPath::kHost, "rank 0: NCCL was not found");
    else check_path(engine, GpuPath::kNccl, "");  // alone: there is nothing to ask of NCCL
  }, without_nccl());
}

// Named operations in another order on each rank, all in flight at once, some of them fused, with
// operations on the CPU between.
TEST(any_order) {
  everywhere([](int rank, int size, Engine& engine, GpuRank& gpu) {
    constexpr int kOps = 40;
    std::vector<int> order(kOps);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(rank));
    std::vector<OpRef> ops(kOps), cpu(kOps);
    std::vector<float*> outs(kOps);
    std::vector<std::vector<float>> on_cpu(kOps, std::vector<float>(3)), ins(kOps, values<float>(rank, 3));
    for (int i : order) {
      const size_t count = 1 + i * 29;
      outs[i] = gpu.upload(values<float>(rank, count));
      ops[i] = gpu.submit(gpu_submission(Kind::kAllreduce, "gpu" + std::to_string(i), DType::kFloat32, outs[i], outs[i], count));
      CHECK_OK(engine.submit(0, allreduce_of("cpu" + std::to_string(i), ins[i], &on_cpu[i], DType::kFloat32), true, &cpu[i]));
    }
    for (int i = 0; i < kOps; ++i) {
      gpu.finish(ops[i]);
      CHECK_OK(wait_for(engine, cpu[i]));
      const size_t count = 1 + i * 29;
      CHECK(gpu.download<float>(outs[i], count) == reduced<float>(size, count, DType::kFloat32, ops[i]->submission));
      CHECK(on_cpu[i] == reduced<float>(size, 3, DType::kFloat32, cpu[i]->submission));
    }
  });
}

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
          ops.push_back(gpu.submit(gpu_submission(Kind::kAllreduce, "between" + std::to_string(p), DType::kFloat32,
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
      Submission s = gpu_submission(Kind::kAllreduce, "agreed on", DType::kFloat32, other, other, 3);
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

// What NCCL cannot reduce is reduced by a kernel, in several launches where ranks are many.
TEST(more_ranks_than_a_launch_has_sources) {
  const int ranks = DeviceReduceArgs::kReduceSources + 6;
  Doubles::get().set("devices", ranks);
  World world(layout(std::vector<int>(ranks, 0)));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    check_allreduce<int16_t>(ranks, rank, gpu, DType::kInt16, kOpSum, 1, 1, 9);
    check_allreduce<int16_t>(ranks, rank, gpu, DType::kInt16, kOpMax, 1, 1, 9);
    check_allreduce<int64_t>(ranks, rank, gpu, DType::kInt64, kOpSum, 1.5, 0.5, 9);
  });
  reset_doubles();
}

// Streams are as late as they like: what is not ordered shows.
TEST(slow_streams) {
  for (int seed = 1; seed <= 3; ++seed) {
    Doubles::get().set("delay_us", 300);
    Doubles::get().set("seed", seed);
    for (const auto& library : {gpu_library(), without_nccl()}) {
      World world(layout({0, 0, 1}));
      world.run([&](int rank, Engine& engine) {
        GpuRank gpu(engine, rank, library);
        check_everything(rank, world.size(), engine, gpu);
        check_plans(rank, world, engine, gpu);
      });
    }
  }
  reset_doubles();
}

// NCCL destroys a communicator only together with the host's other ranks.
TEST(ranks_drop_a_plan_one_after_the_other) {
  World world(layout({0, 0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    Buckets buckets = make_plan(world, rank, engine, gpu, kOpSum, 1, 1, 0);
    CHECK_OK(engine.launch(*buckets.plan, 0, gpu.stream()));
    wait_for_bucket(engine, *buckets.plan, 0, gpu.stream());
    gpu.download<float>(buckets.data[0], kBuckets[0]);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the engine has seen that it is over
    for (int turn = 0; turn < world.size(); ++turn) {
      if (turn == rank) {
        engine.remove_plan(buckets.plan);
        buckets.plan.reset();
      }
      float* one = gpu.upload(std::vector<float>{1});
      gpu.finish(gpu.submit(gpu_submission(Kind::kAllreduce, "", DType::kFloat32, one, one, 1)));
    }
  });
}

TEST(process_sets) {
  reset_doubles();
  World world(layout({0, 0, 0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    // The world's communicator exists: the first set is split from it.
    float* one = gpu.upload(std::vector<float>{1});
    gpu.finish(gpu.submit(gpu_submission(Kind::kAllreduce, "", DType::kFloat32, one, one, 1)));
    int id = 0;
    for (const std::vector<int>& members : {std::vector<int>{0, 2}, {1, 2, 3}, {3}}) {
      ++id;
      const auto at = std::find(members.begin(), members.end(), rank);
      if (at != members.end())
        CHECK_OK(engine.add_set(id, members, world.set_segment("set" + std::to_string(id), rank, members)));
      OpRef split;
      CHECK_OK(engine.submit_split(id, &split));
      CHECK_OK(wait_for(engine, split));
      if (at == members.end()) continue;
      float* data = gpu.upload(values<float>(rank, 9));
      gpu.finish(gpu.submit(gpu_submission(Kind::kAllreduce, "", DType::kFloat32, data, data, 9), id));
      std::vector<float> expected(9);
      for (size_t i = 0; i < 9; ++i)
        for (int member : members) expected[i] += value<float>(member, i);
      CHECK(gpu.download<float>(data, 9) == expected);
      CHECK_OK(engine.remove_set(id));
    }
  });
  CHECK_EQ(Doubles::get().count("ncclCommInitRankConfig"), 4);  // the world's; the others were split from it
}

TEST(ranks_disagree_about_the_device) {
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    const std::vector<float> in = values<float>(rank, 4);
    std::vector<float> out(4);
    Submission s = allreduce_of("x", in, &out, DType::kFloat32);
    float* data = gpu.upload(in);
    if (rank) s = gpu_submission(Kind::kAllreduce, "x", DType::kFloat32, data, data, 4);
    OpRef op;
    s.on_gpu = rank == 1;
    s.stream = gpu.stream();
    CHECK_OK(engine.submit(0, s, true, &op));
    const Status status = wait_for(engine, op);
    CHECK_EQ(status.code() == Code::kMismatch, true);
    CHECK(status.text().find("rank 0 submitted allreduce Sum of float32 [4] on cpu") != std::string::npos);
    CHECK(status.text().find("rank 1 submitted allreduce Sum of float32 [4] on cuda") != std::string::npos);
  });
}

GpuInfo info_of(int host, int version, const std::string& pci, bool sharing = false) {
  GpuInfo info;
  info.host = host;
  info.nccl_version = version;
  info.shares_allowed = sharing;
  std::snprintf(info.pci, sizeof info.pci, "%s", pci.c_str());
  std::snprintf(info.problem, sizeof info.problem, "%s", version ? "" : "no NCCL here");
  return info;
}

TEST(the_path_is_chosen_alike) {
  const std::vector<int> world = {3, 5, 8};
  std::string why;
  const auto path = [&](const std::vector<GpuInfo>& infos) { return why.clear(), choose_path(infos, world, &why); };
  CHECK(path({info_of(0, 22703, "a"), info_of(0, 22703, "b"), info_of(1, 22703, "a")}) == GpuPath::kNccl);
  CHECK(path({info_of(0, 22703, "a"), info_of(0, 0, "b")}) == GpuPath::kHost);
  CHECK_EQ(why, "rank 5: no NCCL here");
  CHECK(path({info_of(0, 22703, "a"), info_of(0, 22703, "b"), info_of(0, 22703, "a")}) == GpuPath::kHost);
  CHECK_EQ(why, "rank 3 and rank 8 share the GPU a of host 0, which NCCL refuses; give each rank a GPU of its own");
  CHECK(path({info_of(0, 23001, "a", true), info_of(0, 23001, "a", true)}) == GpuPath::kNccl);
  CHECK(path({info_of(0, 23001, "a", true), info_of(0, 23001, "a", false)}) == GpuPath::kHost);
  CHECK(path({info_of(0, 23001, "a", true), info_of(0, 23001, "a", true), info_of(0, 23001, "a", true)}) == GpuPath::kHost);
  CHECK(path({info_of(0, 22703, "a"), info_of(0, 22800, "b")}) == GpuPath::kHost);
  CHECK_EQ(why, "rank 3 has NCCL 2.27.3, rank 5 has NCCL 2.28.0; install the same on all");
  CHECK(path({info_of(0, 0, "a")}) == GpuPath::kNccl);  // alone: nothing to ask of NCCL
}

TEST(what_nccl_can_reduce) {
  NcclReduction how;
  CHECK(nccl_reduction(DType::kFloat16, Reduction::kSum, true, {2, 3}, 4, &how));
  CHECK(how.op == kNcclAvg && how.scale.pre == 2 && how.scale.post == 3);
  CHECK(nccl_reduction(DType::kInt32, Reduction::kSum, true, {1, 1}, 4, &how));
  CHECK(how.op == kNcclSum && how.scale.post == 0.25);
  CHECK(!nccl_reduction(DType::kInt32, Reduction::kSum, false, {2, 1}, 4, &how));
  CHECK(!nccl_reduction(DType::kBool, Reduction::kMax, false, {1, 1}, 4, &how));
  CHECK(!nccl_reduction(DType::kComplex64, Reduction::kProduct, false, {1, 1}, 4, &how));
  CHECK(nccl_reduction(DType::kComplex128, Reduction::kSum, true, {1, 1}, 4, &how));
  CHECK(how.dtype == kNcclFloat64 && how.factor == 2 && how.scale.post == 0.25);
}

TEST(nothing_was_misused) { reset_doubles(); }

}  // namespace

TEST_MAIN()
