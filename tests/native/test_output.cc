// Memory of results: dropped ones are used again, within the bound, and aligned as promised.
#include <cstdint>
#include <cstring>

#include "check.h"
#include "ops/output.h"
#include "common/settings.h"

using namespace ringreduce;

namespace {

constexpr int64_t kMiB = 1 << 20;

Output make(int64_t bytes) {
  Output output;
  output.counts = {bytes / 2, bytes - bytes / 2};
  CHECK_OK(output.allocate());
  CHECK_EQ(output.bytes, static_cast<size_t>(bytes));
  std::memset(output.data.get(), 1, output.bytes);
  return output;
}

TEST(a_dropped_result_is_used_again) {
  drop_kept_results();
  const char* first = nullptr;
  {
    Output output = make(5 * kMiB);
    first = output.data.get();
    CHECK_EQ(reinterpret_cast<uintptr_t>(first) % (2 * kMiB), 0u);
  }
  Output again = make(4 * kMiB);
  CHECK(again.data.get() == first);
  Output other = make(5 * kMiB);  // the first is in use
  CHECK(other.data.get() != first);
}

TEST(one_that_is_much_too_large_is_left) {
  drop_kept_results();
  const char* large = nullptr;
  { large = (Output(make(40 * kMiB))).data.get(); }
  Output small = make(8 * kMiB);
  CHECK(small.data.get() != large);
  Output fits = make(36 * kMiB);
  CHECK(fits.data.get() == large);
}

TEST(what_exceeds_the_bound_goes_back) {
  setenv("RINGREDUCE_RESULT_BYTES", "20M", 1);
  reload_settings();
  drop_kept_results();
  const char* kept = nullptr;
  {
    Output older = make(16 * kMiB), newer = make(12 * kMiB);
    kept = older.data.get();
    newer.data.reset();
    older.data.reset();  // both do not fit: what came last stays
  }
  Output again = make(16 * kMiB);
  CHECK(again.data.get() == kept);
  unsetenv("RINGREDUCE_RESULT_BYTES");
  reload_settings();
}

TEST(small_and_empty_ones) {
  for (int64_t bytes : {0, 1, 63, 64, 65, 1000, 65535, 65536, 65537}) {
    Output output = make(bytes);
    CHECK(output.data.get() != nullptr);
    CHECK_EQ(reinterpret_cast<uintptr_t>(output.data.get()) % 64, 0u);
  }
}

}  // namespace

TEST_MAIN()
