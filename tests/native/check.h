// The smallest test harness that says what failed and where.
//
//   TEST(name) { CHECK(x == y); CHECK_EQ(a, b); CHECK_OK(status); }
//   TEST_MAIN()
//
// A program runs all its cases, or those whose name contains argv[1].
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

// Seconds that nothing but a hang takes, on a busy machine either. tests/mutations, which makes hangs, says less.
inline double patience_s() {
  static const char* text = std::getenv("RR_TEST_PATIENCE");
  return text ? std::atof(text) : 600;
}
inline int64_t patience_ns() { return static_cast<int64_t>(patience_s() * 1e9); }

struct Case {
  const char* name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registrar {
  Registrar(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};

// Ends the program at once: a failing rank (thread) must not leave its peers waiting.
[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "FAILED %s:%d: %s\n", file, line, what.c_str());
  std::fflush(stderr);
  std::_Exit(1);
}

inline int run(int argc, char** argv) {
  int ran = 0;
  for (const Case& test : cases()) {
    if (argc > 1 && !std::strstr(test.name, argv[1])) continue;
    test.body();
    std::printf("ok %s\n", test.name);
    std::fflush(stdout);
    ++ran;
  }
  if (!ran) std::fprintf(stderr, "no test case matches\n");
  return ran ? 0 : 1;
}

}  // namespace check

#define TEST(test_name)                                                     \
  static void test_name();                                                  \
  static check::Registrar test_name##_registrar(#test_name, test_name);     \
  static void test_name()
#define CHECK(condition) \
  do { if (!(condition)) check::fail(__FILE__, __LINE__, #condition); } while (false)
#define CHECK_EQ(left, right)                                               \
  do {                                                                      \
    auto check_left = (left);                                               \
    auto check_right = (right);                                             \
    if (!(check_left == check_right)) {                                     \
      std::ostringstream text;                                              \
      text << #left " == " #right ": " << check_left << " vs " << check_right; \
      check::fail(__FILE__, __LINE__, text.str());                          \
    }                                                                       \
  } while (false)
#define CHECK_OK(status_expression)                                         \
  do {                                                                      \
    auto check_status = (status_expression);                                \
    if (!check_status.is_ok()) check::fail(__FILE__, __LINE__, check_status.text()); \
  } while (false)
#define TEST_MAIN() \
  int main(int argc, char** argv) { return check::run(argc, argv); }
