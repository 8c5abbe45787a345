// What the tests of the GPU path share: layouts of hosts, the ranks' values and what the CPU's kernels
// make of them.
#pragma once

#include "gpu_world.h"

namespace ringreduce {

inline WorldOptions layout(const std::vector<int>& host_of) {
  WorldOptions options;
  options.host_of = host_of;
  options.net = {host_of.size() * 7 + 1, 0.3};
  return options;
}

inline const std::vector<std::vector<int>> kLayouts = {{0}, {0, 0}, {0, 0, 0}, {0, 0, 0, 0}, {0, 1}, {0, 0, 1, 1}, {0, 1, 1}};

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

// Streams are as late as they like: what is not ordered shows.
template <typename Body>
void on_slow_streams(Body body) {
  for (int seed = 1; seed <= 3; ++seed) {
    Doubles::get().set("delay_us", 300);
    Doubles::get().set("seed", seed);
    for (const auto& library : {gpu_library(), without_nccl()}) {
      World world(layout({0, 0, 1}));
      world.run([&](int rank, Engine& engine) {
        GpuRank gpu(engine, rank, library);
        body(rank, world, engine, gpu);
      });
    }
  }
  reset_doubles();
}

}  // namespace ringreduce
