// What the ranks of one host share: the bell and the segments.
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <thread>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "common/clock.h"
#include "shm/bell.h"
#include "shm/segment.h"

using namespace ringreduce;

namespace {

constexpr int64_t kSecond = 1'000'000'000;
const int64_t kDeadline = check::patience_ns();

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

// Two threads come here together, as nearly at once as can be.
class Meeting {
 public:
  void meet() {
    const int round = arrived_.fetch_add(1) / 2;
    for (int i = 0; arrived_.load(std::memory_order_acquire) < 2 * (round + 1); ++i)
      if (i > 1000) std::this_thread::yield();
  }

 private:
  std::atomic<int> arrived_{0};
};

// A processor may make a store visible after a later load. Then both could miss each other: the ringer finds no
// sleeper, and the sleeper no news. For as many rounds as half a second has.
TEST(bell_hears_of_what_a_sleeper_does_not_see) {
  Bell bell;
  Meeting before, after;
  std::atomic<int> news{0};
  std::atomic<bool> more{true};
  std::thread ringer([&] {
    for (int round = 1; more; ++round) {
      before.meet();
      for (volatile int i = 0; i < round % 32; ++i) continue;  // who of the two is first differs
      news.store(round, std::memory_order_relaxed);
      bell.ring();
      after.meet();
    }
  });
  const int64_t end = now_ns() + kSecond / 2;
  int lost = 0;
  for (int round = 1; more; ++round) {
    before.meet();
    const uint32_t ticket = bell.ticket();
    bell.enter();
    const bool seen = news.load(std::memory_order_relaxed) == round;
    if (now_ns() > end) more = false;
    after.meet();
    lost += !seen && bell.ticket() == ticket;
    bell.leave();
  }
  ringer.join();
  CHECK_EQ(lost, 0);
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
  CHECK_OK(Segment::open(creator.offer(), bytes, &second));
  CHECK_EQ(second->size(), bytes);
  CHECK(second->data() != creator.data());
  CHECK_EQ(static_cast<int>(creator.data()[bytes - 1]), 0);  // new memory is zero
  second->data()[bytes - 1] = 42;
  CHECK_EQ(static_cast<int>(creator.data()[bytes - 1]), 42);
}

TEST(segment_is_shared_by_path) {
  for (Segment::Backing kind : {Segment::Backing::kMemfd, Segment::Backing::kPosix}) {
    std::shared_ptr<Segment> segment;
    CHECK_OK(Segment::create(kind, 10'000, 10'000, &segment));
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
  CHECK_OK(Segment::create(Segment::Backing::kMemfd, 4096, 4096, &segment));
  auto* shared = new (segment->data()) Shared;
  const pid_t child = fork();
  if (child == 0) {
    std::shared_ptr<Segment> own;
    CHECK_OK(Segment::open(segment->offer(), 4096, &own));
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
  CHECK_OK(Segment::create(Segment::Backing::kPosix, 4096, 4096, &segment));
  CHECK_EQ(names_in_dev_shm(), 1);
  CHECK_OK(Segment::open(segment->offer(), 4096, &opened));
  segment->unlink();
  CHECK_EQ(names_in_dev_shm(), 0);
  opened->data()[0] = 1;  // the mapping outlives the name
  CHECK_EQ(static_cast<int>(segment->data()[0]), 1);
  CHECK_OK(Segment::create(Segment::Backing::kPosix, 4096, 4096, &segment));
  CHECK_EQ(names_in_dev_shm(), 1);
  segment.reset();  // without unlink()
  CHECK_EQ(names_in_dev_shm(), 0);
}

TEST(segment_errors_say_which_and_why) {
  std::shared_ptr<Segment> segment, opened;
  Status status = Segment::open({"shm:/ringreduce-no-such"}, 4096, &opened);
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("shm:/ringreduce-no-such: No such file") != std::string::npos);
  CHECK_OK(Segment::create(Segment::Backing::kMemfd, 4096, 4096, &segment));
  status = Segment::open(segment->offer(), 8192, &opened);
  CHECK(status.text().find(segment->path() + " has 8192 bytes, not the 12288 expected") != std::string::npos);
  CHECK(opened == nullptr);
}

// What /proc/PID/fd/N of another PID namespace may lead to: a file of somebody else.
TEST(segment_is_no_other_file) {
  std::shared_ptr<Segment> segment, opened;
  CHECK_OK(Segment::create(Segment::Backing::kMemfd, 4096, 4096, &segment));
  const std::string name = "/dev/shm/ringreduce-" + std::to_string(getpid()) + "-others-file";
  const std::string contents(8192, 'A');
  std::ofstream(name) << contents;
  SegmentOffer offer = segment->offer();
  offer.path = name;
  CHECK(Segment::open(offer, 4096, &opened).text().find(name + " is here another file") != std::string::npos);
  struct stat info;
  CHECK_EQ(stat(name.c_str(), &info), 0);
  offer.device = info.st_dev;  // as if numbers of another machine met those of a file here
  offer.inode = info.st_ino;
  CHECK(Segment::open(offer, 4096, &opened).text().find("does not have the secret") != std::string::npos);
  CHECK(opened == nullptr);
  std::stringstream left;
  left << std::ifstream(name).rdbuf();
  CHECK(left.str() == contents);
  CHECK_EQ(unlink(name.c_str()), 0);
}

TEST(segment_of_another_kind_of_file_is_not_even_opened) {
  std::shared_ptr<Segment> segment, opened;
  CHECK_OK(Segment::create(Segment::Backing::kMemfd, 4096, 4096, &segment));
  SegmentOffer offer = segment->offer();
  offer.path = "/dev/shm/ringreduce-" + std::to_string(getpid()) + "-pipe";
  CHECK_EQ(mkfifo(offer.path.c_str(), 0600), 0);
  const int reader = open(offer.path.c_str(), O_RDONLY | O_NONBLOCK);
  CHECK(reader >= 0);
  CHECK(!Segment::open(offer, 4096, &opened).is_ok());
  pollfd watched{reader, POLLIN, 0};
  CHECK_EQ(poll(&watched, 1, 0), 0);  // no writer has come and gone, which would be POLLHUP
  close(reader);
  CHECK_EQ(unlink(offer.path.c_str()), 0);
}

static int64_t blocks(const Segment& segment) {
  struct stat info;
  CHECK_EQ(stat(("/dev/shm" + segment.path().substr(4)).c_str(), &info), 0);
  return info.st_blocks * 512;
}

TEST(segment_reserves_what_it_is_asked_to) {
  std::shared_ptr<Segment> segment;
  CHECK_OK(Segment::create(Segment::Backing::kPosix, 64 << 20, 4096, &segment));
  CHECK_EQ(blocks(*segment), int64_t{4096});  // the secret
  CHECK_OK(segment->reserve(4096, 9 << 20));
  CHECK_EQ(blocks(*segment), int64_t{4096} + (9 << 20));
  segment->data()[8192] = 42;
  CHECK_OK(segment->reserve(0, 12 << 20));  // again, and more
  CHECK_EQ(static_cast<int>(segment->data()[8192]), 42);
  CHECK_EQ(blocks(*segment), int64_t{4096} + (12 << 20));
}

TEST(segment_says_what_is_missing) {
  struct statvfs fs;
  CHECK_EQ(statvfs("/dev/shm", &fs), 0);
  if (!fs.f_blocks) return;  // without a limit
  const size_t too_much = fs.f_bavail * fs.f_frsize + (1 << 20);
  std::shared_ptr<Segment> segment;
  const Status status = Segment::create(Segment::Backing::kPosix, too_much, too_much, &segment);
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("MiB of shared memory are needed, and /dev/shm has ") != std::string::npos);
  CHECK(status.text().find("--shm-size=") != std::string::npos);
  CHECK(segment == nullptr);
  CHECK_EQ(names_in_dev_shm(), 0);
}

TEST(segment_in_process_is_zeroed_and_page_aligned) {
  auto segment = Segment::in_process(10'000);
  CHECK_EQ(reinterpret_cast<uintptr_t>(segment->data()) % 4096, uintptr_t{0});
  CHECK_EQ(static_cast<int>(segment->data()[9'999]), 0);
}

TEST_MAIN()
