// How fast the kernels are beside memcpy, on one core. Not built by setup.py:
//
//   g++ -std=c++17 -O3 -ffp-contract=off -Icsrc benchmarks/kernels.cc csrc/kernels/*.cc
//       csrc/common/*.cc -pthread -o /tmp/kernels && /tmp/kernels
//
// GB/s counts every byte that the program reads and writes: memcpy of S bytes is 2S, a reduce
// from two sources to two destinations 4S. "x memcpy" compares with a memcpy timed in turns
// with it; both are medians.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "kernels/kernels.h"

using namespace ringreduce;

namespace {

double seconds(const std::function<void()>& body, int repeats) {
  const int64_t start = now_ns();
  for (int i = 0; i < repeats; ++i) body();
  return static_cast<double>(now_ns() - start) * 1e-9 / repeats;
}

double median(std::vector<double> all) {
  std::nth_element(all.begin(), all.begin() + all.size() / 2, all.end());
  return all[all.size() / 2];
}

using Buffer = std::unique_ptr<char, decltype(&std::free)>;

Buffer buffer(size_t bytes) {
  Buffer made(static_cast<char*>(std::aligned_alloc(4096, bytes)), &std::free);
  std::fill_n(made.get(), bytes, 0);  // touches every page; sums stay as they are
  return made;
}

struct Bench {
  size_t bytes;
  std::vector<Buffer> buffers;

  explicit Bench(size_t size) : bytes(size) {
    for (int i = 0; i < 6; ++i) buffers.push_back(buffer(bytes));
  }

  void line(const std::string& what, double moved, const std::function<void()>& body) {
    const int repeats = static_cast<int>(std::max<size_t>(1, (16 << 20) / bytes));
    std::vector<double> mine, memcpys;
    for (int round = 0; round < 9; ++round) {
      memcpys.push_back(seconds([this] { copy(buffers[4].get(), buffers[5].get(), bytes); }, repeats));
      mine.push_back(seconds(body, repeats));
    }
    const double size = static_cast<double>(bytes);
    const double rate = moved * size / median(mine), reference = 2 * size / median(memcpys);
    std::printf("%9zu K  %-34s %7.1f GB/s %6.2f x memcpy\n", bytes >> 10, what.c_str(), rate * 1e-9, rate / reference);
  }

  void reduce_line(DType dtype, int sources, int destinations, bool in_place, bool stream, Scale scale = {}) {
    std::vector<const void*> src;
    std::vector<void*> dst;
    for (int i = 0; i < sources; ++i) src.push_back(buffers[i].get());
    for (int i = 0; i < destinations; ++i) dst.push_back(buffers[in_place ? i : sources + i].get());
    const ReduceArgs args{dst.data(), destinations, src.data(), sources, bytes / info(dtype).size, scale, stream};
    std::string what = std::string(kernels_name()) + " " + info(dtype).name;
    what += " " + std::to_string(sources) + ":" + std::to_string(destinations);
    what += std::string(in_place ? " in place" : "") + (scale.is_identity() ? "" : " scaled") + (stream ? " stream" : "");
    line(what, sources + destinations, [&] { reduce(dtype, Reduction::kSum, args); });
  }
};

}  // namespace

int main(int argc, char** argv) {
  for (size_t bytes : {size_t{32} << 10, size_t{256} << 10, size_t{64} << 20}) {
    if (argc > 1 && bytes >> 10 != std::strtoull(argv[1], nullptr, 10)) continue;
    Bench bench(bytes);
    bench.line("copy stream", 2, [&] { copy(bench.buffers[0].get(), bench.buffers[1].get(), bytes, true); });
    for (const char* name : {"scalar", "avx2", "avx512"}) {
      if (!force_kernels(name)) continue;
      for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16, DType::kInt32}) {
        bench.reduce_line(dtype, 2, 1, false, false);
        bench.reduce_line(dtype, 2, 2, true, false);
      }
      bench.reduce_line(DType::kFloat32, 2, 2, true, false, {1.0, 0.5});
      bench.reduce_line(DType::kFloat32, 2, 2, true, true);
      bench.reduce_line(DType::kFloat32, 2, 1, false, true);
      bench.reduce_line(DType::kFloat32, 4, 4, true, false);
      bench.reduce_line(DType::kInt32, 2, 2, true, false, {1.0, 0.5});
    }
  }
}
