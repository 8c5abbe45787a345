// Reading the environment, and the log lines that depend on it.
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "check.h"
#include "common/log.h"
#include "common/settings.h"

using namespace ringreduce;

namespace {

const char* const kNames[] = {"RINGREDUCE_KERNELS", "RINGREDUCE_CHUNK_BYTES", "RINGREDUCE_FUSION_BYTES",
                              "RINGREDUCE_TIMEOUT", "RINGREDUCE_HOST_TIMEOUT", "RINGREDUCE_STALL_WARNING", "RINGREDUCE_SPIN_US",
                              "RINGREDUCE_TREE_ARITY", "RINGREDUCE_LOG", "RINGREDUCE_DRIFT", "RINGREDUCE_SINGLE_COPY",
                              "RINGREDUCE_STACK_SIGNAL"};

struct Variable {
  const char* name;
  const char* text;
};

// Settings as a process finds them that has these variables and no other of ours.
const Settings& with(const std::vector<Variable>& variables) {
  for (const char* name : kNames) unsetenv(name);
  for (const Variable& variable : variables) setenv(variable.name, variable.text, 1);
  reload_settings();
  return settings();
}

size_t chunk_of(const char* text) {
  const size_t bytes = with({{"RINGREDUCE_CHUNK_BYTES", text}}).chunk_bytes;
  CHECK_EQ(settings_error(), "");
  return bytes;
}

// Refused, with an error that says `allowed` and a setting that is as if nothing were set.
void check_refused(const char* name, const char* text, const char* allowed) {
  with({{name, text}});
  CHECK_EQ(settings_error(), std::string(name) + " is '" + text + "'; allowed: " + allowed);
}

// What log() prints while `body` runs.
template <class Body>
std::string printed(Body body) {
  char path[] = "/tmp/ringreduce-test-XXXXXX";
  const int file = mkstemp(path), before = dup(STDERR_FILENO);
  CHECK(file >= 0 && before >= 0);
  dup2(file, STDERR_FILENO);
  body();
  dup2(before, STDERR_FILENO);
  close(file), close(before);
  std::ifstream stream(path);
  std::ostringstream text;
  text << stream.rdbuf();
  unlink(path);
  return text.str();
}

}  // namespace

TEST(defaults) {
  const Settings& s = with({});
  CHECK_EQ(settings_error(), "");
  CHECK_EQ(s.kernels, "");
  CHECK_EQ(s.chunk(1, 4), staging_bytes(caches(), 4));
  CHECK_EQ(s.chunk(2, 1), size_t{64} << 10);
  CHECK_EQ(s.chunk(4, 8), size_t{1} << 20);
  CHECK_EQ(s.chunk(1000, 8), size_t{8} << 20);
  CHECK_EQ(s.fusion_bytes, size_t{4} << 20);
  CHECK_EQ(s.timeout_s, 300);
  CHECK_EQ(s.stall_warning_s, 30);
  CHECK_EQ(s.spin_us, 200);
  CHECK_EQ(s.drift, "warn");
  CHECK_EQ(s.single_copy, "auto");
  CHECK_EQ(s.tree_arity, 8);
  CHECK_EQ(s.log_level, 1);
}

// The L2 twice where that is not much, the L3 divided by all that is in flight.
TEST(what_is_staged_fits_the_caches) {
  constexpr size_t K = 1 << 10, M = 1 << 20;
  CHECK_EQ(staging_bytes({512 * K, 32 * M}, 2), 1 * M);
  CHECK_EQ(staging_bytes({512 * K, 32 * M}, 16), 512 * K);
  CHECK_EQ(staging_bytes({512 * K, 32 * M}, 64), 256 * K);
  CHECK_EQ(staging_bytes({256 * K, 8 * M}, 2), 512 * K);
  CHECK_EQ(staging_bytes({2 * M, 105 * M}, 2), 256 * K);
  CHECK_EQ(staging_bytes({512 * K, 0}, 2), 256 * K);
  CHECK_EQ(staging_bytes({64 * K, 32 * M}, 2), 256 * K);
  CHECK_EQ(staging_bytes({0, 0}, 2), 256 * K);
}

TEST(every_variable_is_read) {
  const Settings& s = with({{"RINGREDUCE_KERNELS", "scalar"},
                            {"RINGREDUCE_CHUNK_BYTES", "64K"},
                            {"RINGREDUCE_FUSION_BYTES", "0"},
                            {"RINGREDUCE_TIMEOUT", "2.5"},
                            {"RINGREDUCE_STALL_WARNING", "1e1"},
                            {"RINGREDUCE_SPIN_US", "0"},
                            {"RINGREDUCE_TREE_ARITY", "2"},
                            {"RINGREDUCE_DRIFT", "error"},
                            {"RINGREDUCE_LOG", "3"}});
  CHECK_EQ(settings_error(), "");
  CHECK_EQ(s.drift, "error");
  CHECK_EQ(s.kernels, "scalar");
  CHECK_EQ(s.chunk_bytes, size_t{64} << 10);
  CHECK_EQ(s.fusion_bytes, size_t{0});
  CHECK_EQ(s.timeout_s, 2.5);
  CHECK_EQ(s.stall_warning_s, 10);
  CHECK_EQ(s.spin_us, 0);
  CHECK_EQ(s.tree_arity, 2);
  CHECK_EQ(s.log_level, 3);
}

TEST(sizes_have_suffixes) {
  CHECK_EQ(chunk_of("8192"), size_t{8192});
  CHECK_EQ(chunk_of("4K"), size_t{4096});
  CHECK_EQ(chunk_of("16k"), size_t{16} << 10);
  CHECK_EQ(chunk_of("3M"), size_t{3} << 20);
  CHECK_EQ(chunk_of("1G"), size_t{1} << 30);
  CHECK_EQ(chunk_of(""), Settings().chunk_bytes);  // empty is unset
}

TEST(malformed_values_are_named) {
  const char* chunk =
      "a number of bytes from 4096 to 1073741824, with an optional suffix K, M or G, and a multiple of 64";
  for (const char* text : {"x", "K", "4KB", "4 K", "-4096", " 4096", "1.5M", "4095", "5000", "2G", "1T",
                           "99999999999999999999", "18446744073709551615G"})
    check_refused("RINGREDUCE_CHUNK_BYTES", text, chunk);
  CHECK_EQ(settings().chunk_bytes, Settings().chunk_bytes);
  for (const char* text : {"never", "0", "-1", "nan", "inf", "5s", "1e9"})
    check_refused("RINGREDUCE_TIMEOUT", text, "a number of seconds from 0.1 to 31536000");
  for (const char* text : {"0", "2.5", "many", "99999999999999999999", "8x"})
    check_refused("RINGREDUCE_TREE_ARITY", text, "a whole number from 1 to 1024");
  for (const char* text : {"sse", "AVX2", "avx"})
    check_refused("RINGREDUCE_KERNELS", text, "one of scalar, avx2, avx512");
  for (const char* text : {"1", "Warn", "none"}) check_refused("RINGREDUCE_DRIFT", text, "one of warn, error, off");
}

TEST(the_first_error_stays_and_reload_forgets_it) {
  with({{"RINGREDUCE_LOG", "loud"}, {"RINGREDUCE_CHUNK_BYTES", "?"}});
  CHECK(settings_error().find("RINGREDUCE_CHUNK_BYTES") == 0);
  with({});
  CHECK_EQ(settings_error(), "");
}

TEST(all_are_told_with_their_values) {
  with({{"RINGREDUCE_CHUNK_BYTES", "64K"}, {"RINGREDUCE_SPIN_US", "0.5"}, {"RINGREDUCE_LOG", "loud"}});
  const auto told = [](const std::string& name) {
    for (const SettingInfo& one : setting_infos())
      if (one.name == name) return one.value;
    return std::string("(not told)");
  };
  for (const char* name : kNames) CHECK(told(name) != "(not told)");
  CHECK_EQ(told("RINGREDUCE_CHUNK_BYTES"), "65536");
  CHECK_EQ(told("RINGREDUCE_SPIN_US"), "0.5");
  CHECK_EQ(told("RINGREDUCE_KERNELS"), "");
  CHECK_EQ(told("RINGREDUCE_LOG"), "1");
}

TEST(log_lines_name_the_rank_and_respect_the_level) {
  with({{"RINGREDUCE_LOG", "1"}});
  const auto lines = [] { log(kError, "bad"), log(kWarning, "odd"), log(kInfo, "fine"); };
  CHECK_EQ(printed(lines), "ringreduce: bad\nringreduce: odd\n");
  set_log_rank(3);
  CHECK_EQ(printed(lines), "ringreduce[3]: bad\nringreduce[3]: odd\n");
  with({{"RINGREDUCE_LOG", "0"}});
  CHECK_EQ(printed(lines), "ringreduce[3]: bad\n");
  with({{"RINGREDUCE_LOG", "2"}});
  CHECK_EQ(printed(lines), "ringreduce[3]: bad\nringreduce[3]: odd\nringreduce[3]: fine\n");
}

TEST_MAIN()
