// One verdict on all ranks: of hosts that are threads here, each with a board of its own, joined by socket pairs.
#include <chrono>
#include <csignal>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "common/clock.h"
#include "liveness/watch.h"

using namespace ringreduce;

namespace {

pid_t start(void (*run)()) {
  const pid_t child = fork();
  if (child == 0) {
    run();
    _exit(0);
  }
  return child;
}

[[noreturn]] void sleep_for_ever() {
  for (;;) pause();
}

template <typename Done>
void await(Done done) {
  for (const int64_t end = now_ns() + check::patience_ns(); !done();) {
    CHECK(now_ns() < end);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// One rank a host, in the tree that `parents` describes: by host its parent, -1 for the root.
class Hosts {
 public:
  explicit Hosts(std::vector<int> parents) : parents_(std::move(parents)) {
    const int size = static_cast<int>(parents_.size());
    std::vector<std::vector<Lifeline::Link>> links(size);
    for (int host = 1; host < size; ++host) {
      int ends[2];
      CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
      links[host].push_back({ends[0], parents_[host], true});
      links[parents_[host]].push_back({ends[1], host, false});
      raw_.push_back(ends[0]);
    }
    for (int host = 0; host < size; ++host) {
      WatchConfig config;
      config.rank = host;
      config.ranks = {host};
      for (int rank = 0; rank < size; ++rank) {
        config.host_of.push_back(rank);
        config.processes.push_back({1000 + rank, "node" + std::to_string(rank)});
      }
      config.several_hosts = true;
      config.guardian = 0;
      config.doorbell = "ringreduce-test-" + std::to_string(getpid()) + "-" + std::to_string(host) + "-";
      config.links = links[host];
      boards.push_back(std::make_unique<VerdictBoard>());
      watches.push_back(std::make_unique<Watch>(config, boards.back().get(), [](int) { return false; }, [this] { ++told; }));
    }
  }
  // The end of the connection to its parent that belongs to `host`.
  int raw(int host) const { return raw_[host - 1]; }
  std::string await_verdict(int host) const {
    await([&] { return watches[host]->decided(); });
    return watches[host]->verdict().text();
  }

  std::vector<std::unique_ptr<VerdictBoard>> boards;
  std::vector<std::unique_ptr<Watch>> watches;
  std::atomic<int> told{0};

 private:
  std::vector<int> parents_;
  std::vector<int> raw_;
};

const int kQuiet = setenv("RINGREDUCE_LOG", "0", 1);  // what is damaged here is warned of

const Status kMemory{Code::kSystem, "memory ran out"};

}  // namespace

TEST(an_engine_that_fails_on_any_host_is_the_verdict_on_all) {
  for (int failing = 0; failing < 5; ++failing) {
    Hosts hosts({-1, 0, 0, 1, 1});
    CHECK_EQ(hosts.watches[failing]->failed(kMemory, true).text(), kMemory.text());
    const std::string text = "rank " + std::to_string(failing) + " (process " + std::to_string(1000 + failing) + " on host node" +
                             std::to_string(failing) + ") cannot go on: memory ran out";
    for (int host = 0; host < 5; ++host) CHECK_EQ(hosts.await_verdict(host), text);
    const Status status = hosts.watches[4]->verdict();
    CHECK(status.code() == Code::kPeerLost);
    CHECK_EQ(status.lost()->rank, failing);
    CHECK_EQ(status.lost()->pid, 1000 + failing);
    CHECK_EQ(status.lost()->host, "node" + std::to_string(failing));
    await([&] { return hosts.told == 5; });
  }
}

TEST(of_causes_at_the_same_time_all_hosts_raise_one) {
  for (int round = 0; round < 50; ++round) {
    Hosts hosts({-1, 0, 0, 1, 1});
    std::vector<std::thread> threads;
    for (int host = 0; host < 5; ++host) threads.emplace_back([&hosts, host] { (void)hosts.watches[host]->failed(kMemory, true); });
    for (std::thread& thread : threads) thread.join();
    std::set<std::string> verdicts;
    for (int host = 0; host < 5; ++host) verdicts.insert(hosts.await_verdict(host));
    CHECK_EQ(verdicts.size(), 1u);
  }
}

TEST(what_is_not_certain_gives_way_to_what_it_follows_from) {
  Hosts hosts({-1, 0, 0});
  Status raised;
  std::thread consequence([&] { raised = hosts.watches[1]->failed({Code::kSystem, "MPI has failed"}, false); });
  (void)hosts.watches[2]->failed(kMemory, true);
  consequence.join();
  const std::string text = "rank 2 (process 1002 on host node2) cannot go on: memory ran out";
  CHECK_EQ(raised.text(), text);
  for (int host = 0; host < 3; ++host) CHECK_EQ(hosts.await_verdict(host), text);
}

TEST(what_is_not_certain_is_the_verdict_where_nothing_else_comes) {
  Hosts hosts({-1, 0, 0});
  const std::string text = "rank 1 (process 1001 on host node1) cannot go on: MPI has failed";
  CHECK_EQ(hosts.watches[1]->failed({Code::kSystem, "MPI has failed"}, false).text(), text);
  CHECK_EQ(hosts.await_verdict(2), text);
}

TEST(a_connection_that_closes_is_a_rank_that_died) {
  Hosts hosts({-1, 0, 1});
  CHECK_EQ(shutdown(hosts.raw(1), SHUT_RDWR), 0);
  const std::string died = ") has died: its connection was closed";
  CHECK_EQ(hosts.await_verdict(0), "rank 1 (process 1001 on host node1" + died);
  CHECK_EQ(hosts.await_verdict(1), "rank 0 (process 1000 on host node0" + died);  // each side says so
  CHECK_EQ(hosts.await_verdict(2), "rank 0 (process 1000 on host node0" + died);
}

// MPI may abort a healthy rank as its connection to the dead one closes.
TEST(a_death_that_comes_later_does_not_hide_the_first) {
  Hosts hosts({-1, 0, 0, 0});
  CHECK_EQ(shutdown(hosts.raw(1), SHUT_RDWR), 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  (void)hosts.watches[2]->failed(kMemory, true);
  CHECK_EQ(hosts.await_verdict(3), "rank 1 (process 1001 on host node1) has died: its connection was closed");
}

TEST(who_knows_how_it_died_is_waited_for) {
  Hosts hosts({-1, 0, 0, 0});
  CHECK_EQ(shutdown(hosts.raw(1), SHUT_RDWR), 0);
  CHECK(hosts.boards[2]->said[0].put({1, Certainty::kCertain, "rank 1 has died: killed by signal 9 (Killed)"}));
  (void)hosts.watches[2]->failed(kMemory, true);  // it looks at its board
  CHECK_EQ(hosts.await_verdict(3), "rank 1 has died: killed by signal 9 (Killed)");
}

TEST(whoever_says_goodbye_has_not_died) {
  Hosts hosts({-1, 0, 1});
  hosts.watches[1]->stop();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(!hosts.watches[0]->decided());
  CHECK(!hosts.watches[2]->decided());
  // Those below it decide for themselves then.
  (void)hosts.watches[2]->failed(kMemory, true);
  CHECK_EQ(hosts.await_verdict(2), "rank 2 (process 1002 on host node2) cannot go on: memory ran out");
}

// What a peer sends is looked at before it is used.
TEST(a_lifeline_survives_any_bytes) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    int ends[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    std::string bytes;
    {  // a true frame, damaged
      int source[2];
      CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, source), 0);
      Lifeline sender({{source[0], 1, true}}, 10);
      sender.send_up({3, Certainty::kCertain, std::string(random() % 100, 'x')});
      bytes.resize(4096);
      bytes.resize(static_cast<size_t>(recv(source[1], bytes.data(), bytes.size(), 0)));
      close(source[1]);
    }
    bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
    CHECK_EQ(send(ends[1], bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    shutdown(ends[1], SHUT_WR);
    Lifeline receiver({{ends[0], 1, false}}, 10);
    std::vector<Lifeline::News> news;
    std::vector<pollfd> polled;
    receiver.add_to(&polled);
    CHECK(poll(polled.data(), 1, 10000) == 1);
    receiver.take(polled.data(), &news);
    for (const Lifeline::News& one : news) CHECK(one.what == Lifeline::News::What::kClosed);  // nothing damaged is believed
    close(ends[1]);
  }
}

TEST(a_text_that_is_torn_up_arrives_whole) {
  int ends[2], source[2];
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, source), 0);
  Lifeline sender({{source[0], 1, true}}, 10), receiver({{ends[0], 1, false}}, 10);
  sender.send_up({3, Certainty::kMayFollow, "first"});
  sender.send_up({4, Certainty::kCertain, std::string(5000, 'y')});
  char byte;
  std::vector<Lifeline::News> news;
  while (recv(source[1], &byte, 1, MSG_DONTWAIT) == 1) {
    CHECK_EQ(send(ends[1], &byte, 1, 0), 1);
    std::vector<pollfd> polled;
    receiver.add_to(&polled);
    CHECK(poll(polled.data(), 1, 10000) == 1);
    receiver.take(polled.data(), &news);
  }
  CHECK_EQ(news.size(), 2u);
  CHECK_EQ(news[0].cause.text, "first");
  CHECK(news[0].cause.certainty == Certainty::kMayFollow);
  CHECK_EQ(news[1].cause.rank, 4);
  CHECK_EQ(news[1].cause.text, std::string(Cause::kText, 'y'));
  close(ends[1]);
  close(source[1]);
}

// A process that is none of ours: its parent reaps it.
static std::string end_of(void (*run)(), int signal) {
  int ends[2];
  CHECK_EQ(pipe(ends), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    const pid_t child = start(run);
    (void)!write(ends[1], &child, sizeof child);
    waitpid(child, nullptr, 0);
    _exit(0);
  }
  pid_t child = 0;
  CHECK_EQ(read(ends[0], &child, sizeof child), static_cast<ssize_t>(sizeof child));
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  CHECK(pidfd >= 0);
  if (signal) kill(child, signal);
  pollfd one{pidfd, POLLIN, 0};
  CHECK_EQ(poll(&one, 1, -1), 1);
  const std::string text = how_ended(pidfd, child, MemoryKills());
  waitpid(parent, nullptr, 0);
  for (int fd : {pidfd, ends[0], ends[1]}) close(fd);
  return text;
}

TEST(it_is_told_how_a_process_ended) {
  const bool tells = !end_of([] { sleep_for_ever(); }, SIGKILL).empty();  // systems before Linux 6.15 do where we are quick
  if (!tells) return;
  CHECK_EQ(end_of([] { sleep_for_ever(); }, SIGKILL), "killed by signal 9 (Killed)");
  CHECK_EQ(end_of([] { sleep_for_ever(); }, SIGTERM), "killed by signal 15 (Terminated)");
  CHECK_EQ(end_of([] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    _exit(3);
  }, 0), "exit status 3");
}

TEST(a_death_on_this_host_is_the_verdict_unless_it_was_announced) {
  for (const bool announced : {false, true}) {
    const pid_t child = start([] { sleep_for_ever(); });
    VerdictBoard* board = new VerdictBoard();
    std::atomic<int> told{0};
    WatchConfig config;
    config.ranks = {0, 1};
    config.pids = {getpid(), child};
    config.host_of = {0, 0};
    Watch watch(config, board, [announced](int local) { return announced && local == 1; }, [&told] { ++told; });
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    if (announced) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      CHECK(!watch.decided());
    } else {
      await([&] { return told == 1; });
      CHECK_EQ(watch.verdict().text().rfind("rank 1 has died", 0), 0u);
    }
    watch.stop();
    delete board;
  }
}

TEST_MAIN()
