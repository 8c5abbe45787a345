// Which way operations on GPU tensors go: NCCL or host memory, one communicator or another.
#include <atomic>
#include <chrono>

#include "gpu/nccl_types.h"
#include "gpu_values.h"

using namespace ringreduce;

namespace {

// A context costs memory. The first test here, as it takes a process that has not used GPU 0 yet.
TEST(no_context_on_gpu_0_for_threads_that_use_another_one) {
  World world(layout({0}));
  world.run([&](int, Engine& engine) {
    GpuRank gpu(engine, 0, gpu_library(), 1);
    std::thread([&] {  // its current GPU is the first
      float* one = gpu.upload(std::vector<float>{1});
      gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, one, one, 1)));
    }).join();
    CHECK(gpu.device().cuda().device_in_use(1));
    CHECK(!gpu.device().cuda().device_in_use(0));
  });
  reset_doubles();
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

// Done means enqueued: the memory is still to be read and written.
TEST(tensors_are_kept_until_the_gpu_has_been_there) {
  for (const auto& library : {gpu_library(), without_nccl()}) {
    World world(layout({0, 0}));
    world.run([&](int rank, Engine& engine) {
      GpuRank gpu(engine, rank, library);
      float* values = gpu.upload(std::vector<float>{1});
      Submission s = gpu_submission(find_kind("allreduce"), "", DType::kFloat32, values, values, 1);
      OpRef op = gpu.submit(s);
      gpu.finish(op);
      const GpuStream stream = op->gpu->stream;
      CHECK_EQ(gpu.device().cuda().stream_synchronize(stream.get()), kCudaSuccess);
      std::atomic<bool> gone{false};
      s.keep = std::shared_ptr<void>(&gone, [](void* flag) { *static_cast<std::atomic<bool>*>(flag) = true; });
      if (library == gpu_library()) Doubles::get().stall(stream.get(), 1);
      op = gpu.submit(std::move(s));
      if (library == gpu_library()) {
        CHECK_OK(wait_for(engine, op));
        std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the background thread looks every 50 ms
        CHECK(!gone);
        Doubles::get().stall(stream.get(), 0);
      }
      while (!gone) std::this_thread::yield();
      CHECK(op->is_finished());
      gpu.finish(op);
      CHECK_EQ(gpu.download<float>(values, 1)[0], 4.0f);
    });
    reset_doubles();
  }
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

TEST(process_sets) {
  reset_doubles();
  World world(layout({0, 0, 0, 0}));
  world.run([&](int rank, Engine& engine) {
    GpuRank gpu(engine, rank);
    // The world's communicator exists: the first set is split from it.
    float* one = gpu.upload(std::vector<float>{1});
    gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, one, one, 1)));
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
      gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, data, data, 9), id));
      std::vector<float> expected(9);
      for (size_t i = 0; i < 9; ++i)
        for (int member : members) expected[i] += value<float>(member, i);
      CHECK(gpu.download<float>(data, 9) == expected);
      CHECK_OK(engine.remove_set(id));
    }
  });
  CHECK_EQ(Doubles::get().count("ncclCommInitRankConfig"), 4);  // the world's; the others were split from it
}

TEST(nothing_was_misused) { reset_doubles(); }

}  // namespace

TEST_MAIN()
