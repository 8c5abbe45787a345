// Every kernel of every table against kernel_oracle.h, bit for bit.
#include <cstdlib>
#include <random>

#include "check.h"
#include "common/half.h"
#include "elements.h"
#include "kernel_oracle.h"
#include "kernels/kernels.h"

using namespace ringreduce;
using oracle::Bytes;
using oracle::Fenced;
using oracle::random_elements;

namespace {

const std::vector<size_t> kSizes = {0, 1, 2, 7, 8, 9, 31, 64, 1000, 4097};
const std::vector<size_t> kSizesOfMany = {0, 31, 9001};  // of more sources than are combined at once
const Reduction kReductions[] = {Reduction::kSum, Reduction::kMin, Reduction::kMax, Reduction::kProduct};

std::vector<std::string> tables() {
  std::vector<std::string> all;
  for (const char* name : {"scalar", "avx2", "avx512"})
    if (force_kernels(name)) all.push_back(name);
  return all;
}

struct Case {
  DType dtype;
  Reduction reduction;
  int sources;
  size_t count;
  Scale scale;
};

std::string describe(const Case& c) {
  std::ostringstream text;
  text << kernels_name() << " " << info(c.dtype).name << " reduction " << static_cast<int>(c.reduction) << ", "
       << c.sources << " sources, " << c.count << " elements, scale " << c.scale.pre << " " << c.scale.post;
  return text.str();
}

void check_result(const Case& c, const Bytes& expected, const Fenced& got, const char* where) {
  const Bytes content = got.content();
  if (!got.fences_stand()) check::fail(__FILE__, __LINE__, describe(c) + ": wrote outside of " + where);
  if (!oracle::same(c.dtype, expected.data(), content.data(), content.size()))
    check::fail(__FILE__, __LINE__, describe(c) + ": wrong values in " + where);
}

// Two destinations apart from the sources, each `step` elements more off the line than the one
// before. Sources stay as they are.
void reduce_apart(const Case& c, const std::vector<Bytes>& inputs, const Bytes& expected, size_t step, bool stream) {
  const size_t size = info(c.dtype).size;
  size_t offset = 0;
  std::vector<Fenced> sources, destinations;
  for (const Bytes& input : inputs) sources.emplace_back(input, (offset += step) * size % 64);
  for (int i = 0; i < 2; ++i) destinations.emplace_back(expected.size(), (offset += step) * size % 64);
  std::vector<const void*> src;
  for (Fenced& source : sources) src.push_back(source.data());
  void* dst[] = {destinations[0].data(), destinations[1].data()};
  reduce(c.dtype, c.reduction, {dst, 2, src.data(), c.sources, c.count, c.scale, stream});
  for (Fenced& destination : destinations) check_result(c, expected, destination, "a destination");
  for (int i = 0; i < c.sources; ++i) CHECK(sources[i].content() == inputs[i] && sources[i].fences_stand());
}

// As in the arena: every source is a destination too. All of them equally far off the line.
void reduce_in_place(const Case& c, const std::vector<Bytes>& inputs, const Bytes& expected, size_t step, bool stream) {
  std::vector<Fenced> buffers;
  for (const Bytes& input : inputs) buffers.emplace_back(input, step * info(c.dtype).size % 64);
  std::vector<const void*> src;
  std::vector<void*> dst;
  for (Fenced& buffer : buffers) src.push_back(buffer.data()), dst.push_back(buffer.data());
  reduce(c.dtype, c.reduction, {dst.data(), c.sources, src.data(), c.sources, c.count, c.scale, stream});
  for (Fenced& buffer : buffers) check_result(c, expected, buffer, "a buffer reduced in place");
}

void check_case(const Case& c, std::mt19937_64* random) {
  std::vector<Bytes> inputs;
  for (int i = 0; i < c.sources; ++i) inputs.push_back(random_elements(c.dtype, c.count, random));
  const Bytes expected = oracle::reduce(c.dtype, c.reduction, inputs, c.scale);
  for (const std::string& table : tables()) {
    CHECK(force_kernels(table));
    for (bool stream : {false, true})
      for (size_t step : {0, 1}) {
        reduce_apart(c, inputs, expected, step, stream);
        reduce_in_place(c, inputs, expected, step, stream);
      }
  }
}

void check_dtype(DType dtype) {
  std::mt19937_64 random(static_cast<uint64_t>(dtype) + 1);
  for (Reduction reduction : kReductions) {
    if (!reduce_supported(dtype, reduction)) continue;
    for (int sources : {1, 2, 3, 4, 7, 13, 18})
      for (size_t count : sources > 12 ? kSizesOfMany : kSizes)
        for (Scale scale : {Scale{}, Scale{0.3, 1.7}, Scale{1.0, 1.0 / 3}, Scale{-0.5, 1.0}})
          check_case({dtype, reduction, sources, count, scale}, &random);
  }
}

}  // namespace

TEST(the_setting_chooses_the_table) {
  setenv("RINGREDUCE_KERNELS", "scalar", 1);
  CHECK_EQ(std::string(kernels_name()), "scalar");
  CHECK(!force_kernels("") && !force_kernels("sse9"));
  CHECK_EQ(std::string(kernels_name()), "scalar");
  for (const std::string& table : tables()) CHECK(force_kernels(table) && table == kernels_name());
}

TEST(what_is_supported) {
  for (int dtype = 0; dtype < kDTypeCount; ++dtype)
    for (Reduction reduction : kReductions) {
      const bool complex = std::string(info(static_cast<DType>(dtype)).name).find("complex") == 0;
      const bool ordered = reduction == Reduction::kMin || reduction == Reduction::kMax;
      CHECK_EQ(reduce_supported(static_cast<DType>(dtype), reduction), !(complex && ordered));
    }
}

TEST(uint8) { check_dtype(DType::kUint8); }
TEST(int8) { check_dtype(DType::kInt8); }
TEST(int16) { check_dtype(DType::kInt16); }
TEST(int32) { check_dtype(DType::kInt32); }
TEST(int64) { check_dtype(DType::kInt64); }
TEST(float16) { check_dtype(DType::kFloat16); }
TEST(bfloat16) { check_dtype(DType::kBFloat16); }
TEST(float32) { check_dtype(DType::kFloat32); }
TEST(float64) { check_dtype(DType::kFloat64); }
TEST(complex64) { check_dtype(DType::kComplex64); }
TEST(complex128) { check_dtype(DType::kComplex128); }
TEST(boolean) { check_dtype(DType::kBool); }

// 49 * (1.0 / 49) is less than 1.
TEST(averages_of_equal_whole_numbers_are_that_number) {
  for (const std::string& table : tables())
    for (int ranks = 1; ranks < 1000; ++ranks) {
      CHECK(force_kernels(table));
      const std::vector<int64_t> ours(9, -7);
      std::vector<int64_t> average(9);
      const std::vector<const void*> src(ranks, ours.data());
      void* dst[] = {average.data()};
      reduce(DType::kInt64, Reduction::kSum, {dst, 1, src.data(), ranks, ours.size(), {1.0, 1.0 / ranks}});
      CHECK(average == ours);
    }
}

TEST(every_half_widens_exactly) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const uint16_t half = static_cast<uint16_t>(code);
    const float got = half_to_float(half), expected = static_cast<float>(oracle::half_value(half));
    CHECK(std::isnan(expected) ? std::isnan(got) : bits_of(got) == bits_of(expected));
    CHECK(std::isnan(expected) || float_to_half(got) == half);
  }
}

TEST(floats_round_to_the_nearest_half) {
  const auto check_one = [](float value) {
    const uint16_t got = float_to_half(value), expected = oracle::Half::write(value);
    if (!oracle::same(DType::kFloat16, &got, &expected, 2)) check::fail(__FILE__, __LINE__, std::to_string(value));
  };
  for (uint32_t code = 0; code < 0x7c00; ++code) {  // halves, the middles between them, and their neighbours
    const float low = half_to_float(static_cast<uint16_t>(code));
    const float high = code == 0x7bff ? 65536 : half_to_float(static_cast<uint16_t>(code + 1));
    for (float value : {low, (low + high) / 2})
      for (float sign : {1.0f, -1.0f})
        for (float towards : {0.0f, value, INFINITY}) check_one(sign * std::nextafter(value, towards));
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; ++i) check_one(float_of(static_cast<uint32_t>(random())));
}

// All codes against a few partners whose sums and products need rounding up, down and to even.
TEST(every_16_bit_float_in_every_table) {
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const uint16_t one = dtype == DType::kFloat16 ? 0x3c00 : 0x3f80;
    for (int partner : {0, 0x8001, one + 1, one / 2 + 3, one * 3 / 2})
      for (Reduction reduction : kReductions) {
        const Case c{dtype, reduction, 2, 0x10000, {}};
        std::vector<uint16_t> codes(c.count), partners(c.count, static_cast<uint16_t>(partner));
        for (size_t i = 0; i < c.count; ++i) codes[i] = static_cast<uint16_t>(i);
        const auto bytes = [](const std::vector<uint16_t>& all) {
          const char* first = reinterpret_cast<const char*>(all.data());
          return Bytes(first, first + all.size() * sizeof(all[0]));
        };
        const std::vector<Bytes> inputs = {bytes(codes), bytes(partners)};
        const Bytes expected = oracle::reduce(dtype, reduction, inputs, c.scale);
        for (const std::string& table : tables()) {
          CHECK(force_kernels(table));
          reduce_apart(c, inputs, expected, 0, false);
        }
      }
  }
}

TEST(copies) {
  std::mt19937_64 random(1);
  for (const std::string& table : tables())
    for (size_t bytes : {0, 1, 63, 64, 65, 127, 128, 255, 256, 257, 319, 320, 1000, 4096, 70001})
      for (size_t from : {0, 1, 8})
        for (size_t to : {0, 1, 63})
          for (bool stream : {false, true}) {
            CHECK(force_kernels(table));
            Fenced source(random_elements(DType::kUint8, bytes, &random), from), destination(bytes, to);
            copy(destination.data(), source.data(), bytes, stream);
            CHECK(destination.content() == source.content() && destination.fences_stand());
          }
}

TEST_MAIN()
