// Collectives on GPU tensors end to end on the doubles of CUDA and NCCL: every rank a thread.
#include <numeric>
#include <random>

#include "gpu_values.h"

using namespace ringreduce;

namespace {

template <typename T>
void check_allreduce(int size, int rank, GpuRank& gpu, DType dtype, int op, double pre, double post, size_t count) {
  const T* in = gpu.upload(values<T>(rank, count));
  T* out = gpu.upload(std::vector<T>(count));
  Submission s = gpu_submission(find_kind("allreduce"), "", dtype, in, out, count);
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
    Submission s = gpu_submission(find_kind("broadcast"), "", DType::kFloat32, in, out, 77);
    s.root = root;
    gpu.finish(gpu.submit(s));
    CHECK(gpu.download<float>(out, 77) == values<float>(root, 77));
  }
}

void check_allgather(int rank, int size, GpuRank& gpu, bool even) {
  const auto count = [&](int of) { return even ? size_t{6} : size_t(of) * 5; };  // uneven: rank 0 has nothing
  const float* in = gpu.upload(values<float>(rank, count(rank)));
  Submission s = gpu_submission(find_kind("allgather"), "", DType::kFloat32, in, nullptr, count(rank));
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
  Submission s = gpu_submission(find_kind("reducescatter"), "", DType::kFloat32, in, nullptr, total);
  s.outputs = {{reinterpret_cast<char*>(out), counts[rank] * sizeof(float)}};
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
  Submission s = gpu_submission(find_kind("alltoall"), "", DType::kFloat32, nullptr, nullptr, 0);
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
  Submission s = gpu_submission(find_kind("allreduce"), "group", DType::kFloat32, nullptr, nullptr, 0);
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
      ops[i] = gpu.submit(gpu_submission(find_kind("allreduce"), "gpu" + std::to_string(i), DType::kFloat32, outs[i], outs[i], count));
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

TEST(collectives_on_slow_streams) {
  on_slow_streams([](int rank, World& world, Engine& engine, GpuRank& gpu) { check_everything(rank, world.size(), engine, gpu); });
}

TEST(ranks_disagree_about_the_device) {
  World world(layout({0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    const std::vector<float> in = values<float>(rank, 4);
    std::vector<float> out(4);
    Submission s = allreduce_of("x", in, &out, DType::kFloat32);
    float* data = gpu.upload(in);
    if (rank) s = gpu_submission(find_kind("allreduce"), "x", DType::kFloat32, data, data, 4);
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

TEST(nothing_was_misused) { reset_doubles(); }

}  // namespace

TEST_MAIN()
