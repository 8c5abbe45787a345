// ringreduce._core's digests of memory. No logic.
#include "kernels/digest.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings/support.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringreduce {

namespace {

constexpr size_t kQuickBytes = 64 << 10;  // are hashed in the time in which the GIL changes hands

using Regions = std::vector<std::pair<size_t, size_t>>;

std::pair<uint64_t, std::vector<uint64_t>> digest_all(const Regions& regions) {
  size_t bytes = 0;
  for (const auto& region : regions) bytes += region.second;
  std::optional<nb::gil_scoped_release> release;
  if (bytes > kQuickBytes) release.emplace();
  std::vector<uint64_t> each;
  each.reserve(regions.size());
  for (const auto& [address, bytes_of] : regions) each.push_back(address ? digest(pointer(address), bytes_of) : 0);
  const uint64_t all = digest(each.data(), each.size() * sizeof(uint64_t));
  return {all, std::move(each)};
}

DType checked(int dtype) {
  if (dtype < 0 || dtype >= kDTypeCount) throw nb::value_error("dtype code out of range");
  return static_cast<DType>(dtype);
}

[[noreturn]] void refuse() { throw nb::value_error("a digest travels in elements of a floating point or complex type"); }

}  // namespace

void bind_digest(nb::module_& m) {
  m.attr("DIGEST_ELEMENTS") = kDigestElements;
  m.def("digest", &digest_all, "regions"_a);
  m.def("write_pairs", [](int dtype, uint64_t bits, size_t to) {
    if (!write_pairs(checked(dtype), bits, pointer(to))) refuse();
  }, "dtype"_a, "digest"_a, "to"_a);
  m.def("pairs_differ", [](int dtype, size_t address) {
    bool differ = false;
    if (!pairs_differ(checked(dtype), pointer(address), &differ)) refuse();
    return differ;
  }, "dtype"_a, "address"_a);
}

}  // namespace ringreduce
