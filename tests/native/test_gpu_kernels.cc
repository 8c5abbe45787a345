// Reduce and merge_rows of the GPU, run on the host by gpu/cuda/emulate.h: the reduce against the CPU's
// kernels, bit for bit, merged rows against plain loops. (tests/gpu has them on a GPU.)
#include "check.h"
#include "elements.h"
#include "gpu/cuda/emulate.h"

using namespace ringreduce;
using oracle::Bytes;
using oracle::Fenced;
using oracle::put;
using oracle::random_elements;
using oracle::value_of;

namespace {

const DType kFloats[] = {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64};

struct ReduceCase {
  DType dtype;
  Reduction reduction;
  int sources;
  size_t count;
  Scale scale;
};

// `step`: by how many elements each address is further off the line than the one before;
// `in_place`: the result goes to the middle one of the sources.
void check_reduce(const ReduceCase& c, size_t first_step, size_t step, bool in_place, std::mt19937_64* random) {
  const size_t size = info(c.dtype).size;
  std::vector<Fenced> sources;
  std::vector<const void*> src;
  size_t offset = first_step;
  for (int i = 0; i < c.sources; ++i, offset += step)
    sources.emplace_back(random_elements(c.dtype, c.count, random), offset * size % 64);
  for (Fenced& source : sources) src.push_back(source.data());
  Fenced expected(c.count * size, 0), apart(c.count * size, offset * size % 64);
  Fenced& result = in_place ? sources[c.sources / 2] : apart;
  void* dst[] = {expected.data()};
  reduce(c.dtype, c.reduction, {dst, 1, src.data(), c.sources, c.count, c.scale});
  CHECK_EQ(reduce_on_host({result.data(), src.data(), c.sources, c.count, c.dtype, c.reduction, c.scale}), kCudaSuccess);
  CHECK(result.fences_stand());
  if (!oracle::same(c.dtype, expected.content().data(), result.content().data(), c.count * size)) {
    std::ostringstream text;
    text << info(c.dtype).name << " reduction " << static_cast<int>(c.reduction) << ", " << c.sources << " sources, "
         << c.count << " elements, scale " << c.scale.pre << " " << c.scale.post;
    check::fail(__FILE__, __LINE__, text.str());
  }
}

}  // namespace

TEST(reduces_as_the_cpu_does) {
  for (int dtype = 0; dtype < kDTypeCount; ++dtype) {
    std::mt19937_64 random(static_cast<uint64_t>(dtype) + 1);
    for (Reduction reduction : {Reduction::kSum, Reduction::kMin, Reduction::kMax, Reduction::kProduct}) {
      if (!reduce_supported(static_cast<DType>(dtype), reduction)) continue;
      for (int sources : {1, 2, 3, 7, 64})
        for (size_t count : sources > 7 ? std::vector<size_t>{33, 300} : std::vector<size_t>{0, 1, 5, 16, 33, 1000, 4097})
          for (Scale scale : {Scale{}, Scale{0.3, 1.7}, Scale{1.0, 1.0 / 3}, Scale{-0.5, 1.0}}) {
            const ReduceCase c{static_cast<DType>(dtype), reduction, sources, count, scale};
            check_reduce(c, 0, 0, false, &random);  // on the line
            check_reduce(c, 3, 0, true, &random);   // in step
            check_reduce(c, 1, 1, true, &random);   // out of step
          }
    }
  }
}

// --- merge_rows -----------------------------------------------------------------------------------

namespace {

void check_merge(DType dtype, size_t width, size_t step, double scale, std::mt19937_64* random) {
  const size_t size = info(dtype).size, rows = 40, out_rows = 25;
  Fenced values(random_elements(dtype, rows * width, random), step * size % 64);
  Fenced out(out_rows * width * size, step * size % 64);
  std::vector<int64_t> order, first = {0};
  for (size_t row = 0; row < out_rows; ++row) {  // rows of none, one and several
    for (size_t i = 0; i < row % 4; ++i) order.push_back(static_cast<int64_t>((*random)() % rows));
    first.push_back(static_cast<int64_t>(order.size()));
  }
  const MergeRowsArgs args{out.data(), values.data(), order.data(), first.data(), out_rows, width, dtype, scale};
  CHECK_EQ(merge_rows_on_host(args), kCudaSuccess);
  const Bytes from = values.content();
  Bytes expected(out_rows * width * size);
  const bool wide = dtype == DType::kFloat64;
  for (size_t row = 0; row < out_rows; ++row)
    for (size_t column = 0; column < width; ++column) {
      double sum = 0;
      for (int64_t i = first[row]; i < first[row + 1]; ++i) {
        const double value = value_of(dtype, &from[(order[i] * width + column) * size]);
        sum = i == first[row] ? value : wide ? sum + value : static_cast<float>(sum) + static_cast<float>(value);
      }
      const double scaled = wide ? sum * scale : static_cast<float>(sum) * static_cast<float>(scale);
      put(dtype, scaled, &expected[(row * width + column) * size]);
    }
  CHECK(out.fences_stand() && values.fences_stand());
  if (!oracle::same(dtype, expected.data(), out.content().data(), expected.size()))
    check::fail(__FILE__, __LINE__, std::string(info(dtype).name) + ", width " + std::to_string(width));
}

}  // namespace

TEST(merges_rows) {
  std::mt19937_64 random(6);
  for (DType dtype : kFloats)
    for (size_t width : {1, 2, 3, 8, 64, 100, 1000, 1024, 5000})
      for (size_t step : {0, 1})
        for (double scale : {1.0, 1.0 / 3}) check_merge(dtype, width, step, scale, &random);
}

TEST(a_single_row_is_that_row) {
  const float values[] = {-0.0f, 1.5f};
  float out[2];
  const int64_t order[] = {0}, first[] = {0, 1};
  CHECK_EQ(merge_rows_on_host({out, values, order, first, 1, 2, DType::kFloat32, 1}), kCudaSuccess);
  CHECK(!std::memcmp(out, values, sizeof(out)));
}

// --- what is refused ------------------------------------------------------------------------------

TEST(refuses_what_has_no_meaning) {
  std::vector<double> a(8), b(8);
  const std::vector<const void*> src(65, a.data());
  const auto reduce_some = [&](int sources, DType dtype, Reduction reduction) {
    return reduce_on_host({b.data(), src.data(), sources, 1, dtype, reduction, {}});
  };
  CHECK(reduce_some(0, DType::kFloat32, Reduction::kSum) && reduce_some(65, DType::kFloat32, Reduction::kSum));
  CHECK(reduce_some(2, DType::kComplex64, Reduction::kMin) && reduce_some(2, DType::kComplex64, Reduction::kMax));
  CHECK(!reduce_some(64, DType::kFloat32, Reduction::kSum) && !reduce_some(2, DType::kComplex64, Reduction::kProduct));
  const int64_t order[] = {0}, first[] = {0, 1};
  CHECK(merge_rows_on_host({b.data(), a.data(), order, first, 1, 1, DType::kInt32, 1}));
}

TEST_MAIN()
