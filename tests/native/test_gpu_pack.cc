// Pack and unpack of the GPU, run on the host by gpu/cuda/emulate.h, against plain loops. (tests/gpu has
// them on a GPU.)
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
const size_t kCounts[] = {0, 1, 2, 3, 7, 8, 9, 31, 33, 64, 127, 500, 512, 513, 1024, 2049, 4097};

Bytes converted(const Bytes& elements, DType from, DType to, double scale) {
  if (from == to && scale == 1) return elements;
  const size_t count = elements.size() / info(from).size;
  Bytes result(count * info(to).size);
  for (size_t i = 0; i < count; ++i) {
    double value = value_of(from, elements.data() + i * info(from).size);
    if (from == DType::kFloat64 || to == DType::kFloat64) {
      value *= scale;
    } else {
      value = static_cast<float>(value) * static_cast<float>(scale);
    }
    put(to, value, result.data() + i * info(to).size);
  }
  return result;
}

// Tensors in memory of their own, and their places in a bucket that has gaps.
struct Layout {
  DType tensor_dtype, bucket_dtype;
  std::vector<size_t> counts, offsets, steps;  // steps: elements that a tensor is away from a cache line
  size_t bucket_step = 0, end = 0;

  void add(size_t count, size_t gap, size_t step) {
    offsets.push_back(end + gap);
    counts.push_back(count);
    steps.push_back(step);
    end += gap + count;
  }
};

std::string describe(const Layout& layout, double scale) {
  std::ostringstream text;
  text << layout.counts.size() << " tensors, " << info(layout.tensor_dtype).name << ", bucket of "
       << info(layout.bucket_dtype).name << ", scale " << scale;
  return text.str();
}

void check_same(const Layout& layout, double scale, DType dtype, const Bytes& expected, const Fenced& got) {
  const Bytes content = got.content();
  if (!got.fences_stand()) check::fail(__FILE__, __LINE__, describe(layout, scale) + ": wrote outside");
  if (!oracle::same(dtype, expected.data(), content.data(), content.size()))
    check::fail(__FILE__, __LINE__, describe(layout, scale) + ": wrong values");
}

// Both ways: `to_bucket` or from it. Returns the number of launches.
int check_pack(const Layout& layout, double scale, bool to_bucket, bool large, std::mt19937_64* random) {
  const size_t size = info(layout.tensor_dtype).size, bucket_size = info(layout.bucket_dtype).size;
  Fenced bucket(random_elements(layout.bucket_dtype, layout.end, random), layout.bucket_step * bucket_size % 64);
  std::vector<Fenced> tensors;
  std::vector<PackItem> items;
  for (size_t i = 0; i < layout.counts.size(); ++i) {
    tensors.emplace_back(random_elements(layout.tensor_dtype, layout.counts[i], random), layout.steps[i] * size % 64);
    items.push_back({tensors.back().data(), layout.offsets[i], layout.counts[i]});
  }
  Bytes expected_bucket = bucket.content();
  std::vector<Bytes> expected;
  for (size_t i = 0; i < tensors.size(); ++i) {
    char* place = expected_bucket.data() + layout.offsets[i] * bucket_size;
    const size_t bytes = layout.counts[i] * bucket_size;
    if (to_bucket) {
      const Bytes packed = converted(tensors[i].content(), layout.tensor_dtype, layout.bucket_dtype, scale);
      std::copy(packed.begin(), packed.end(), place);
    }
    expected.push_back(to_bucket ? tensors[i].content()
                                 : converted(Bytes(place, place + bytes), layout.bucket_dtype, layout.tensor_dtype, scale));
  }
  int launches = 0;
  const PackArgs args{bucket.data(), layout.bucket_dtype, layout.tensor_dtype, items.data(),
                      static_cast<int>(items.size()), scale};
  CHECK_EQ(gpu::pack_or_unpack(args, to_bucket, gpu::HostLaunch{large, &launches}), kCudaSuccess);
  check_same(layout, scale, layout.bucket_dtype, expected_bucket, bucket);
  for (size_t i = 0; i < tensors.size(); ++i) check_same(layout, scale, layout.tensor_dtype, expected[i], tensors[i]);
  return launches;
}

// All counts, once with everything on its line, once with gaps and steps of all kinds.
Layout usual_layout(DType tensor, DType bucket, bool aligned) {
  Layout layout{tensor, bucket, {}, {}, {}};
  layout.bucket_step = aligned ? 0 : 3;
  size_t turn = 0;
  for (size_t count : kCounts) {
    const size_t to_line = (64 - layout.end % 64) % 64;
    layout.add(count, aligned ? to_line : turn % 4, aligned ? 0 : turn * 5 % 16);
    ++turn;
  }
  // In step with the bucket, though neither is on a line.
  if (!aligned) layout.add(3000, 1, (layout.end + 1 + layout.bucket_step) % 64);
  return layout;
}

void check_pair(DType tensor, DType bucket, double scale) {
  std::mt19937_64 random(1 + static_cast<int>(tensor) * kDTypeCount + static_cast<int>(bucket));
  for (bool aligned : {true, false})
    for (bool to_bucket : {true, false})
      CHECK_EQ(check_pack(usual_layout(tensor, bucket, aligned), scale, to_bucket, true, &random), 1);
}

}  // namespace

TEST(every_dtype_as_it_is) {
  for (int dtype = 0; dtype < kDTypeCount; ++dtype) check_pair(static_cast<DType>(dtype), static_cast<DType>(dtype), 1);
}

TEST(every_pair_of_floats) {
  for (DType tensor : kFloats)
    for (DType bucket : kFloats)
      for (double scale : {1.0, 1.0 / 3, -2.5, 1e-5}) check_pair(tensor, bucket, scale);
}

TEST(many_tensors_in_few_launches) {
  std::mt19937_64 random(3);
  Layout layout{DType::kFloat32, DType::kBFloat16, {}, {}, {}};
  while (layout.counts.size() < 2000) layout.add(random() % 30, random() % 3, random() % 16);
  for (bool to_bucket : {true, false}) {
    CHECK_EQ(check_pack(layout, 0.5, to_bucket, true, &random), 1);
    CHECK_EQ(check_pack(layout, 0.5, to_bucket, false, &random), 8);  // 245 tensors in each
  }
  while (layout.counts.size() < 5000) layout.add(1 + random() % 9, 0, 0);
  CHECK_EQ(check_pack(layout, 1, true, true, &random), 3);
}

// The search for a warp's tensor, with tensors of very different lengths beside each other.
TEST(short_and_long_tensors) {
  std::mt19937_64 random(4);
  for (int trial = 0; trial < 20; ++trial) {
    Layout layout{DType::kFloat32, DType::kFloat32, {}, {}, {}};
    const size_t tensors = 1 + random() % 300;
    while (layout.counts.size() < tensors)
      layout.add(random() % 20 ? 1 + random() % 40 : random() % 20000, random() % 8 ? 0 : random() % 5000, 0);
    for (bool to_bucket : {true, false}) check_pack(layout, 1, to_bucket, trial % 2, &random);
  }
}

TEST(any_order_and_overlap) {
  std::vector<float> bucket(3000), a(1000), b(1000), c(1000);
  for (size_t i = 0; i < bucket.size(); ++i) bucket[i] = static_cast<float>(i);
  const PackItem items[] = {{a.data(), 2000, 1000}, {b.data(), 0, 1000}, {c.data(), 1500, 1000}};
  const PackArgs args{bucket.data(), DType::kFloat32, DType::kFloat32, items, 3, 2};
  CHECK_EQ(unpack_on_host(args), kCudaSuccess);
  for (size_t i = 0; i < 1000; ++i) CHECK(a[i] == 2 * (2000 + i) && b[i] == 2 * i && c[i] == 2 * (1500 + i));
}

TEST(any_order_is_one_launch) {
  std::vector<uint16_t> bucket(3000), tensor(10, 7);
  std::vector<PackItem> items;
  for (size_t i = 0; i < 300; ++i) items.push_back({tensor.data(), (i * 7 % 300) * 10, 10});
  const PackArgs args{bucket.data(), DType::kInt16, DType::kInt16, items.data(), 300, 1};
  int launches = 0;
  CHECK_EQ(gpu::pack_or_unpack(args, true, gpu::HostLaunch{true, &launches}), kCudaSuccess);
  CHECK_EQ(launches, 1);
  CHECK(bucket == std::vector<uint16_t>(3000, 7));
}

TEST(nothing_to_do_is_no_launch) {
  std::vector<float> bucket(100, 1.5f);
  int launches = 0;
  const auto pack = [&](const PackItem& item, double scale) {
    const PackArgs args{bucket.data(), DType::kFloat32, DType::kFloat32, &item, 1, scale};
    return gpu::pack_or_unpack(args, true, gpu::HostLaunch{true, &launches});
  };
  CHECK_EQ(pack({bucket.data() + 10, 10, 50}, 1), kCudaSuccess);  // lies there
  CHECK_EQ(pack({nullptr, 0, 0}, 2), kCudaSuccess);
  CHECK_EQ(launches, 0);
  CHECK_EQ(pack({bucket.data() + 10, 10, 50}, 2), kCudaSuccess);
  CHECK_EQ(launches, 1);
  for (size_t i = 0; i < bucket.size(); ++i) CHECK_EQ(bucket[i], i >= 10 && i < 60 ? 3.0f : 1.5f);
}

// Too long to run here: what the launches would cover.
TEST(long_tensors_are_taken_in_parts) {
  using Body = gpu::PackBody<gpu::Opaque<uint32_t>, gpu::Opaque<uint32_t>, gpu::kLargeParameters>;
  const uint64_t gib = uint64_t{1} << 30;
  char* const bucket = reinterpret_cast<char*>(uintptr_t{1} << 40);
  char* const tensor = reinterpret_cast<char*>(uintptr_t{1} << 44);
  const std::vector<PackItem> items = {
      {tensor, 7, 100}, {tensor + 16 * gib, 200, 5 * gib + 3}, {tensor + 64 * gib, 5 * gib + 203, 9}, {tensor, 20 * gib, 8}};
  gpu::PackQueue queue{items.data(), items.data() + items.size()};
  Body::Parameters p;
  std::vector<uint64_t> done(items.size());
  size_t item = 0;
  int launches = 0;
  while (queue.item != queue.end) {
    queue.fill(&p, bucket, 4, 4);
    ++launches;
    CHECK(p.entries > 0 && reinterpret_cast<uintptr_t>(p.bucket) % 16 == 0);
    for (uint32_t i = 0; i < p.entries; ++i) {
      if (done[item] == items[item].count) ++item;
      CHECK_EQ(p.bucket + uint64_t{p.offset[i]} * 4, bucket + (items[item].offset + done[item]) * 4);
      CHECK_EQ(p.tensor[i], static_cast<char*>(items[item].tensor) + done[item] * 4);
      CHECK(i == 0 || p.offset[i] >= p.offset[i - 1] + p.count[i - 1]);
      done[item] += p.count[i];
    }
    CHECK(Body::prepare(&p) <= (gpu::kMostSpan >> 9) + p.entries);
  }
  CHECK_EQ(launches, 4);  // 2 + 2 + 1 Gi elements with what lies beside them, and what lies far behind
  for (size_t i = 0; i < items.size(); ++i) CHECK_EQ(done[i], items[i].count);
}

// --- conversions ----------------------------------------------------------------------------------

namespace {

void check_conversion(DType from, DType to, const Bytes& elements) {
  const size_t count = elements.size() / info(from).size;
  Fenced source(elements, 0), target(count * info(to).size, 0);
  const PackItem item{source.data(), 0, count};
  CHECK_EQ(pack_on_host({target.data(), to, from, &item, 1, 1.0}), kCudaSuccess);
  const Bytes expected = converted(elements, from, to, 1), got = target.content();
  for (size_t i = 0; i < count; ++i)
    if (!oracle::same(to, &expected[i * info(to).size], &got[i * info(to).size], info(to).size))
      check::fail(__FILE__, __LINE__, std::string(info(from).name) + " to " + info(to).name + ": " +
                                          std::to_string(value_of(from, &elements[i * info(from).size])));
}

template <typename T>
Bytes bytes_of(const std::vector<T>& elements) {
  const char* first = reinterpret_cast<const char*>(elements.data());
  return Bytes(first, first + elements.size() * sizeof(T));
}

}  // namespace

TEST(every_16_bit_float) {
  std::vector<uint16_t> codes(0x10000);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint16_t>(i);
  for (DType from : {DType::kFloat16, DType::kBFloat16})
    for (DType to : kFloats) check_conversion(from, to, bytes_of(codes));
}

// 16-bit floats, the middles between them, and the neighbours of both: near ones in float32, and
// in float64 so near that rounding to float32 on the way would make a tie of them.
TEST(rounding_to_the_nearest_16_bit_float) {
  for (DType to : {DType::kFloat16, DType::kBFloat16}) {
    const bool half = to == DType::kFloat16;
    const auto decode = half ? oracle::half_value : oracle::bfloat_value;
    const int infinity = half ? 0x7c00 : 0x7f80;
    std::vector<double> doubles;
    std::vector<float> floats;
    for (int code = 0; code < infinity; ++code) {
      const double low = decode(static_cast<uint16_t>(code));
      const double high = code + 1 == infinity ? (half ? 0x1p16 : 0x1p128) : decode(static_cast<uint16_t>(code + 1));
      for (double middle : {low, (low + high) / 2})
        for (double towards : {0.0, middle, static_cast<double>(INFINITY)}) {
          const double near = std::nextafter(middle, towards);
          doubles.insert(doubles.end(), {near, -near});
          floats.push_back(std::nextafter(static_cast<float>(middle), static_cast<float>(towards)));
          floats.push_back(-floats.back());
        }
    }
    for (double special : {1e300, 1e-300, 0x1p-150, 0x1.8p-134, static_cast<double>(INFINITY), std::nan("")})
      doubles.insert(doubles.end(), {special, -special});
    check_conversion(DType::kFloat64, to, bytes_of(doubles));
    check_conversion(DType::kFloat32, to, bytes_of(floats));
  }
}

TEST(random_bits) {
  std::mt19937_64 random(5);
  for (DType from : kFloats)
    for (DType to : kFloats) {
      std::vector<uint64_t> bits(50000);
      for (uint64_t& word : bits) word = random();
      check_conversion(from, to, bytes_of(bits));
    }
}

// Payloads that a 16-bit float has no room for.
TEST(nan_stays_nan) {
  const std::vector<uint32_t> nans = {0x7f800001, 0xff800001, 0x7f801fff, 0xffffffff, 0x7fffffff};
  for (DType to : kFloats) check_conversion(DType::kFloat32, to, bytes_of(nans));
  const std::vector<uint64_t> wide = {0x7ff0000000000001, 0xfff0000000000001, 0xffffffffffffffff};
  for (DType to : kFloats) check_conversion(DType::kFloat64, to, bytes_of(wide));
}

TEST(refuses_what_has_no_meaning) {
  std::vector<double> a(8), b(8);
  const PackItem item{a.data(), 0, 4};
  const auto pack = [&](DType bucket, DType tensor, double scale) {
    const PackArgs args{b.data(), bucket, tensor, &item, 1, scale};
    return pack_on_host(args) || unpack_on_host(args);
  };
  CHECK(pack(DType::kInt32, DType::kFloat32, 1) && pack(DType::kFloat32, DType::kInt32, 1));
  CHECK(pack(DType::kInt32, DType::kInt32, 2) && pack(DType::kComplex64, DType::kComplex64, 0.5));
}

TEST_MAIN()
