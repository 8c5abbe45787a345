// The status page: what peers read while its owner writes, and what an engine puts there.
#include <atomic>
#include <memory>
#include <thread>

#include "check.h"
#include "liveness/status_page.h"
#include "world.h"

namespace ringreduce {
namespace {

struct Memory {
  std::shared_ptr<Segment> segment = Segment::in_process(kStatusPageBytes);
  StatusPage* page = reinterpret_cast<StatusPage*>(segment->data());
};

WaitRecord waits_for(const std::string& title) {
  WaitRecord wait;
  wait.title.set(title);
  wait.place.set(title);
  return wait;
}

TEST(nothing_is_known_of_a_page_that_nobody_has_written) {
  Memory memory;
  StatusReading reading;
  CHECK(!read_status(*memory.page, &reading));
}

// Title, place and time of each version belong together.
TEST(readers_see_whole_versions) {
  Memory memory;
  OwnStatus own(memory.page, 3);
  std::atomic<bool> over{false};
  std::atomic<int> begun{0};
  std::vector<std::thread> readers;
  std::atomic<long> seen{0};
  for (int i = 0; i < 2; ++i)
    readers.emplace_back([&] {
      StatusReading reading;
      for (++begun; !over;) {
        if (!read_status(*memory.page, &reading)) continue;
        CHECK_EQ(reading.rank, 3);
        if (!reading.blocked) continue;
        const std::string title = reading.waits[0].title.get();
        CHECK_EQ(title, reading.waits[0].place.get());
        CHECK_EQ(title, reading.last.get());
        CHECK_EQ(title, std::string(title.size(), title[0]));
        ++seen;
      }
    });
  while (begun < 2) std::this_thread::yield();
  for (int i = 0; i < 20000 || !seen; ++i) {
    const std::string text(10 + i % 120, static_cast<char>('a' + i % 26));
    const uint64_t ticket = own.begin_wait(waits_for(text), text);
    if (i % 64 == 0) std::this_thread::yield();
    own.end_wait(ticket);
  }
  over = true;
  for (std::thread& reader : readers) reader.join();
}

// The owner is stopped while it writes: the copy before stands.
TEST(half_a_version_is_not_seen) {
  Memory memory;
  OwnStatus own(memory.page, 0);
  own.begin_wait(waits_for("whole"), "");
  const uint64_t version = memory.page->version;
  for (auto& word : memory.page->copies[(version + 1) % 2]) word = 0x4141414141414141;
  StatusReading reading;
  CHECK(read_status(*memory.page, &reading));
  CHECK_EQ(reading.waits[0].title.get(), "whole");
}

TEST(what_a_peer_has_written_may_be_anything) {
  Memory memory;
  for (uint64_t junk : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x4141414141414141}, uint64_t{0x0000000100000001}}) {
    for (auto& copy : memory.page->copies)
      for (auto& word : copy) word = junk;
    memory.page->version = 5;
    StatusReading reading;
    if (!read_status(*memory.page, &reading)) continue;
    CHECK(reading.waits_shown() <= StatusRecord::kWaits);
    CHECK(reading.failure.get().size() <= sizeof reading.failure.bytes);
    CHECK(reading.waits[0].title.get().size() <= sizeof reading.waits[0].title.bytes);
  }
}

TEST(texts_are_cut_between_characters) {
  PageText<144> text;
  text.set(std::string(142, 'a') + "\xC3\xA4");  // does not fit
  CHECK_EQ(text.get(), std::string(142, 'a'));
  text.set(std::string(141, 'a') + "\xC3\xA4");
  CHECK_EQ(text.get(), std::string(141, 'a') + "\xC3\xA4");
}

TEST(of_many_waits_the_first_are_shown_and_all_counted) {
  Memory memory;
  OwnStatus own(memory.page, 0);
  std::vector<uint64_t> tickets;
  for (int i = 0; i < 5; ++i) tickets.push_back(own.begin_wait(waits_for(std::to_string(i)), ""));
  own.place(tickets[1], "here");
  StatusReading reading;
  CHECK(read_status(*memory.page, &reading));
  CHECK_EQ(reading.blocked, 5u);
  CHECK_EQ(reading.waits_shown(), 3);
  CHECK_EQ(reading.waits[1].place.get(), "here");
  own.end_wait(tickets[0]);
  own.end_wait(tickets[2]);
  CHECK(read_status(*memory.page, &reading));
  CHECK_EQ(reading.blocked, 3u);
  CHECK_EQ(reading.waits[0].title.get(), "1");
  CHECK_EQ(reading.waits[1].title.get(), "3");
}

TEST(the_first_failure_stays) {
  Memory memory;
  OwnStatus own(memory.page, 0);
  own.state(RankState::kFailed, Status(Code::kSystem, "one"));
  own.state(RankState::kClosing, "two");
  StatusReading reading;
  CHECK(read_status(*memory.page, &reading));
  CHECK(reading.state == RankState::kClosing);
  CHECK_EQ(reading.failure.get(), "one");
}

TEST(one_of_many_reports_and_its_claim_ends) {
  Memory first, memory[4];
  std::atomic<int> own{0}, begun{0}, reporter{-1};
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank)
    threads.emplace_back([&, rank] {
      OwnStatus status(memory[rank].page, rank);
      Claim claim;
      for (++begun; begun < 4;) {}
      if (status.claim_report(first.page, ReportKind::kStall, int64_t{3600} * 1'000'000'000, &claim)) ++own, reporter = rank;
    });
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(own.load(), 1);
  OwnStatus late(memory[0].page, 7);
  Claim claim;
  CHECK(!late.claim_report(first.page, ReportKind::kStall, int64_t{3600} * 1'000'000'000, &claim));
  CHECK_EQ(claim.rank, reporter.load());
  CHECK(claim.since_ns > 0 && claim.since_ns <= now_ns());
  CHECK(late.claim_report(first.page, ReportKind::kTimeout, int64_t{3600} * 1'000'000'000, &claim));  // another matter
  CHECK(late.claim_report(first.page, ReportKind::kStall, 0, &claim));
}

// Until the engine of `rank` shows to be `blocked`.
StatusReading await(Engine& engine, int rank, uint32_t blocked) {
  for (;;) {
    const StatusReading reading = engine.statuses()[rank];
    if (reading.blocked == blocked) return reading;
    std::this_thread::yield();
  }
}

TEST(an_engine_shows_what_it_waits_for_and_no_longer) {
  WorldOptions options;
  options.host_of = {0, 0};
  World world(options);
  world.run([&](int rank, Engine& engine) {
    world.meet();
    int32_t one = rank, sum = 0;
    const auto reduce = [&](const std::string& name) {
      std::vector<int32_t> in{one}, out{0};
      OpRef op;
      CHECK_OK(engine.submit(0, allreduce_of(name, in, &out, DType::kInt32), false, &op));
      CHECK_OK(wait_for(engine, op));
      sum = out[0];
    };
    reduce("first");
    if (rank == 0) {
      reduce("loss");
    } else {
      const StatusReading peer = await(engine, 0, 1);
      CHECK_EQ(peer.waits[0].title.get(), "allreduce 'loss'");
      CHECK_EQ(peer.last.get(), "allreduce 'first'");
      CHECK(peer.all_blocked());
      CHECK(!engine.statuses()[1].all_blocked());
      reduce("loss");
    }
    CHECK_EQ(sum, 1);
    world.meet();
    CHECK_EQ(await(engine, 1 - rank, 0).submitters, 1u);
    world.meet();
    if (rank == 0) {
      engine.close(10, "an exception");
    } else {
      StatusReading peer;
      while (peer.state != RankState::kGone) peer = engine.statuses()[0];
      CHECK_EQ(peer.failure.get(), "an exception");
    }
    world.meet();
  });
}

}  // namespace
}  // namespace ringreduce

TEST_MAIN()
