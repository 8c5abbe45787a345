// The deadline of what cannot be interrupted.
#include <chrono>
#include <string>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "common/deadline.h"

using namespace ringreduce;

// What a process of its own writes to standard error, and its exit status.
template <typename Run>
static std::pair<std::string, int> outcome(Run run) {
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    run();
    std::_Exit(7);
  }
  close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(got));
  close(ends[0]);
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status));
  return {text, WEXITSTATUS(status)};
}

TEST(a_deadline_that_passes_ends_the_process_with_its_last_message) {
  const auto [text, status] = outcome([] {
    Deadline deadline(0.2, "first");
    deadline.say("second");
    std::this_thread::sleep_for(std::chrono::seconds(60));  // what nothing interrupts
  });
  CHECK(text == "second\n");
  CHECK_EQ(status, 1);
}

// It finds the questions' words on its standard error, one after the other.
TEST(questions_are_asked_in_their_time) {
  const auto [text, status] = outcome([] {
    const auto say = [](const char* words) { return std::vector<std::string>{"/bin/sh", "-c", std::string("echo ") + words + " >&2"}; };
    Deadline deadline(0.3, "over", {{0.05, say("first")}, {0.1, {"/no/such/program"}}, {0.3, say("second")}});
    std::this_thread::sleep_for(std::chrono::seconds(60));
  });
  CHECK(text == "first\nsecond\nover\n");
  CHECK_EQ(status, 1);
}

TEST(a_deadline_that_is_cancelled_does_nothing) {
  const auto [text, status] = outcome([] {
    Deadline deadline(0.05, "never");
    deadline.cancel();
    deadline.cancel();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    { Deadline another(0.05, "never either"); }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  });
  CHECK(text.empty());
  CHECK_EQ(status, 7);
}

TEST_MAIN()
