// What the ranks of one host share: the bell and the segments.
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "common/clock.h"
#include "transport/bell.h"
#include "transport/segment.h"

using namespace ringreduce;

namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kDeadline = 60 * kSecond;  // far beyond what anything here takes: a hang

}  // namespace

// ---- bell ----

// Takes turns on `turn`; a wake-up that is lost shows as a sleep of the whole timeout.
static void ping_pong(Bell* bell, std::atomic<int>* turn, int me, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    const int mine = 2 * round + me;
    while (turn->load(std::memory_order_acquire) != mine) {
      const uint32_t ticket = bell->ticket();
      bell->enter();
      if (turn->load(std::memory_order_acquire) != mine) {
        const int64_t before = now_ns();
        bell->sleep(ticket, kDeadline);
        CHECK(now_ns() - before < kDeadline);
      }
      bell->leave();
    }
    turn->store(mine + 1, std::memory_order_release);
    bell->ring();
  }
}

TEST(bell_loses_no_wake_up_between_threads) {
  constexpr int kRounds = 20'000;
  Bell bell;
  std::atomic<int> turn{0};
  std::thread other([&] { ping_pong(&bell, &turn, 1, kRounds); });
  ping_pong(&bell, &turn, 0, kRounds);
  other.join();
  CHECK_EQ(turn.load(), 2 * kRounds);
}

TEST(bell_with_an_old_ticket_does_not_sleep_and_a_timeout_ends_a_sleep) {
  Bell bell;
  const uint32_t old_ticket = bell.ticket();
  bell.enter();
  bell.ring();
  bell.sleep(old_ticket, 3600 * kSecond);   // returns, or the test never ends
  bell.sleep(bell.ticket(), kSecond / 100);  // nobody rings
  bell.leave();
  bell.ring();
  CHECK_EQ(bell.ticket(), old_ticket + 1);  // with nobody there a ring changes nothing
}

// ---- segments ----

static void check_shared(const Segment& creator, size_t bytes) {
  std::shared_ptr<Segment> second;
  CHECK_OK(Segment::open(creator.path(), bytes, &second));
  CHECK_EQ(second->size(), bytes);
  CHECK(second->data() != creator.data());
  CHECK_EQ(static_cast<int>(creator.data()[bytes - 1]), 0);  // new memory is zero
  second->data()[bytes - 1] = 42;
  CHECK_EQ(static_cast<int>(creator.data()[bytes - 1]), 42);
}

TEST(segment_is_shared_by_path) {
  for (Segment::Kind kind : {Segment::Kind::kMemfd, Segment::Kind::kPosix}) {
    std::shared_ptr<Segment> segment;
    CHECK_OK(Segment::create(kind, 10'000, &segment));
    check_shared(*segment, 10'000);
  }
}

// A process of its own, which opens the segment by its path as another rank does, and talks
// through the bell in it.
TEST(segment_and_bell_between_processes) {
  constexpr int kRounds = 1'000;
  struct Shared {
    Bell bell;
    std::atomic<int> turn{0};
  };
  std::shared_ptr<Segment> segment;
  CHECK_OK(Segment::create(Segment::Kind::kMemfd, 4096, &segment));
  auto* shared = new (segment->data()) Shared;
  const pid_t child = fork();
  if (child == 0) {
    std::shared_ptr<Segment> own;
    CHECK_OK(Segment::open(segment->path(), 4096, &own));
    auto* in_child = reinterpret_cast<Shared*>(own->data());
    ping_pong(&in_child->bell, &in_child->turn, 1, kRounds);
    std::_Exit(0);
  }
  CHECK(child > 0);
  ping_pong(&shared->bell, &shared->turn, 0, kRounds);
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int names_in_dev_shm() {
  const std::string mine = "ringreduce-" + std::to_string(getpid()) + "-";
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    found += entry.path().filename().string().compare(0, mine.size(), mine) == 0;
  }
  return found;
}

TEST(segment_of_posix_kind_leaves_no_name_behind) {
  std::shared_ptr<Segment> segment, opened;
  CHECK_OK(Segment::create(Segment::Kind::kPosix, 4096, &segment));
  CHECK_EQ(names_in_dev_shm(), 1);
  CHECK_OK(Segment::open(segment->path(), 4096, &opened));
  segment->unlink();
  CHECK_EQ(names_in_dev_shm(), 0);
  opened->data()[0] = 1;  // the mapping outlives the name
  CHECK_EQ(static_cast<int>(segment->data()[0]), 1);
  CHECK_OK(Segment::create(Segment::Kind::kPosix, 4096, &segment));
  CHECK_EQ(names_in_dev_shm(), 1);
  segment.reset();  // without unlink()
  CHECK_EQ(names_in_dev_shm(), 0);
}

TEST(segment_errors_say_which_and_why) {
  std::shared_ptr<Segment> segment, opened;
  Status status = Segment::open("shm:/ringreduce-no-such", 4096, &opened);
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("shm:/ringreduce-no-such: No such file") != std::string::npos);
  CHECK_OK(Segment::create(Segment::Kind::kMemfd, 4096, &segment));
  status = Segment::open(segment->path(), 8192, &opened);
  CHECK(status.text().find(segment->path() + " has 4096 bytes, not the 8192 expected") != std::string::npos);
  CHECK(opened == nullptr);
}

TEST(segment_in_process_is_zeroed_and_page_aligned) {
  auto segment = Segment::in_process(10'000);
  CHECK_EQ(reinterpret_cast<uintptr_t>(segment->data()) % 4096, uintptr_t{0});
  CHECK_EQ(static_cast<int>(segment->data()[9'999]), 0);
}

TEST_MAIN()
