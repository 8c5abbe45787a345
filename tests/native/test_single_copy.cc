// Tensors that are read where they lie: the machine, step by step and all ranks in one thread; and the reading of
// another process's memory.
#include <csignal>
#include <cstring>
#include <functional>

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "collectives/kinds.h"
#include "shm/peer_memory.h"
#include "world.h"

using namespace ringreduce;

namespace {

constexpr size_t kChunk = 4096, kCount = 1'000'000;  // several pieces

// The ranks of one host, whose machines a test moves one step at a time.
class Ranks {
 public:
  explicit Ranks(int n) : peers_(all(n), std::vector<int>(n, getpid())), staging_(Staging::staging_bytes(n, kChunk)) {
    for (int rank = 0; rank < n; ++rank) topologies_.push_back(make_topology(rank, all(n), std::vector<int>(n, 0)));
    for (int rank = 0; rank < n; ++rank) {
      Channel channel;
      channel.topology = &topologies_[rank];
      channel.stream = Staging(&state_, staging_.data(), n, kChunk, kChunk, &bell_);
      channel.peers = &peers_;
      channel.read_any_size = true;
      channels_.push_back(channel);
    }
    submissions_.resize(n);
    outputs_.resize(n);
  }

  void submit(int rank, Submission submission) {
    submissions_[rank] = std::move(submission);
    outputs_[rank] = Output();
    outputs_[rank].counts = counts_;
    machines_.resize(channels_.size());
    machines_[rank] = submissions_[rank].kind->machine(&channels_[rank], submissions_[rank], &outputs_[rank]);
  }
  void know_counts(std::vector<int64_t> counts) { counts_ = std::move(counts); }

  // As far as the rank gets alone.
  Status move(int rank) {
    for (bool moved = true; moved && !machines_[rank]->done();) {
      moved = false;
      RR_TRY(machines_[rank]->advance(&moved));
    }
    return Status::ok();
  }
  bool step(int rank) {
    bool moved = false;
    CHECK_OK(machines_[rank]->advance(&moved));
    return moved;
  }
  bool done(int rank) const { return machines_[rank]->done(); }
  std::string where(int rank) const { return machines_[rank]->where(); }
  const float* output(int rank) const { return reinterpret_cast<const float*>(outputs_[rank].data.get()); }
  Staging& stream() { return channels_[0].stream; }

 private:
  static std::vector<int> all(int n) {
    std::vector<int> ranks(n);
    for (int i = 0; i < n; ++i) ranks[i] = i;
    return ranks;
  }

  PeerMemory peers_;
  StagingState state_;
  Bell bell_;
  std::vector<char> staging_;
  std::vector<Topology> topologies_;
  std::vector<Channel> channels_;
  std::vector<Submission> submissions_;
  std::vector<Output> outputs_;
  std::vector<int64_t> counts_;
  std::vector<std::unique_ptr<Machine>> machines_;
};

std::vector<std::vector<float>> tensors(int n) {
  std::vector<std::vector<float>> all(n);
  for (int rank = 0; rank < n; ++rank) all[rank].assign(kCount, static_cast<float>(rank + 1));
  return all;
}

Submission gather_of(std::vector<float>& in) {
  std::vector<float> none;
  Submission s = allreduce_of("", in, &none, DType::kFloat32);
  s.kind = find_kind("allgather");
  return s;
}

// A process that sleeps until it is killed.
class Sleeper {
 public:
  Sleeper() : pid_(fork()) {
    if (pid_ == 0)
      for (;;) pause();
  }
  ~Sleeper() { end(); }
  int pid() const { return pid_; }
  void end() {
    if (pid_ > 0) kill(pid_, SIGKILL), waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  int pid_;
};

}  // namespace

// Each writes its own slice until all have reduced theirs: in place, the others still read the rest.
TEST(in_place_no_rank_writes_what_others_still_read) {
  auto values = tensors(3);
  Ranks ranks(3);
  for (int rank = 0; rank < 3; ++rank) ranks.submit(rank, allreduce_of("", values[rank], &values[rank], DType::kFloat32));
  for (int rank = 0; rank < 3; ++rank) CHECK(ranks.step(rank));  // published
  CHECK_OK(ranks.move(0));
  CHECK_OK(ranks.move(1));
  CHECK(!ranks.done(0) && !ranks.done(1));
  const Range slices[] = {slice(kCount * 4, 3, 0), slice(kCount * 4, 3, 1), slice(kCount * 4, 3, 2)};
  for (int rank : {0, 1})
    for (size_t i = 0; i < kCount; ++i)
      CHECK_EQ(values[rank][i], i * 4 >= slices[rank].begin && i * 4 < slices[rank].end ? 6.0f : rank + 1.0f);
  while (!ranks.done(0) || !ranks.done(1) || !ranks.done(2))
    for (int rank : {2, 0, 1}) CHECK_OK(ranks.move(rank));
  for (int rank = 0; rank < 3; ++rank)
    for (size_t i = 0; i < kCount; ++i) CHECK_EQ(values[rank][i], 6.0f);
}

TEST(a_source_is_needed_until_all_have_read_it) {
  auto values = tensors(2);
  Ranks ranks(2);
  ranks.know_counts({kCount * 4, kCount * 4});
  for (int rank : {0, 1}) ranks.submit(rank, gather_of(values[rank]));
  for (int rank : {0, 1}) CHECK(ranks.step(rank));
  CHECK_OK(ranks.move(0));
  CHECK(!ranks.done(0));
  CHECK(ranks.where(0).find("waiting for other ranks to have read") != std::string::npos);
  while (!ranks.done(1)) {
    CHECK(!ranks.done(0));
    CHECK(ranks.step(1));
  }
  CHECK(ranks.done(0));
  for (int rank : {0, 1})
    for (size_t i = 0; i < 2 * kCount; ++i) CHECK_EQ(ranks.output(rank)[i], i < kCount ? 1.0f : 2.0f);
}

// Rank 1 needs nothing more when it fails, and its program writes to the tensor; rank 0 is in the midst of reading.
TEST(what_is_read_of_a_rank_that_breaks_off_counts_for_nothing) {
  auto values = tensors(2);
  Ranks ranks(2);
  ranks.know_counts({kCount * 4, kCount * 4});
  for (int rank : {0, 1}) ranks.submit(rank, gather_of(values[rank]));
  for (int rank : {0, 1}) CHECK(ranks.step(rank));
  CHECK_OK(ranks.move(1));
  for (int i = 0; i < 6; ++i) CHECK(ranks.step(0));  // its own part, and a piece of the other
  ranks.stream().break_off();
  values[1].assign(kCount, 99);
  CHECK_OK(ranks.move(0));
  CHECK(!ranks.done(0) && !ranks.done(1));
}

// As memory of a device is, which its owner can read, the system for others not.
TEST(memory_that_cannot_be_read_is_staged) {
  auto values = tensors(2);
  auto* closed = static_cast<float*>(mmap(nullptr, kCount * 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Ranks ranks(2);
  ranks.know_counts({kCount * 4, kCount * 4});
  Submission refused = gather_of(values[1]);
  refused.pieces[0].in = reinterpret_cast<const char*>(closed);
  ranks.submit(0, gather_of(values[0]));
  ranks.submit(1, refused);
  for (int rank : {0, 1}) CHECK(ranks.step(rank));
  CHECK_OK(ranks.move(0));  // what it has not got it does not take for a result
  CHECK(!ranks.done(0));
  mprotect(closed, kCount * 4, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < kCount; ++i) closed[i] = 2;
  CHECK_OK(ranks.move(1));
  CHECK_EQ(ranks.where(1).find("step 0 of "), 0u);  // the staged machine's
  CHECK(!ranks.done(1));
  while (!ranks.done(0) || !ranks.done(1))
    for (int rank : {0, 1}) CHECK_OK(ranks.move(rank));
  for (int rank : {0, 1})
    for (size_t i = 0; i < 2 * kCount; ++i) CHECK_EQ(ranks.output(rank)[i], i < kCount ? 1.0f : 2.0f);
  munmap(closed, kCount * 4);
}

// Reading would have to be over before anything is written.
TEST(memory_that_cannot_be_read_is_not_reduced_in_place) {
  auto values = tensors(2);
  auto* closed = static_cast<float*>(mmap(nullptr, kCount * 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Ranks ranks(2);
  Submission refused = allreduce_of("", values[1], &values[1], DType::kFloat32);
  refused.pieces[0].in = refused.pieces[0].out = reinterpret_cast<char*>(closed);
  ranks.submit(0, allreduce_of("", values[0], &values[0], DType::kFloat32));
  ranks.submit(1, refused);
  for (int i = 0; i < 2; ++i)
    for (int rank : {0, 1}) CHECK(ranks.step(rank));
  for (int rank : {0, 1}) CHECK_EQ(ranks.where(rank), "chunk 0 of 977 drained, 0 reduced, 0 staged");
  munmap(closed, kCount * 4);
}

// Which ranks reduce in place is not agreed on, so it makes no difference which of them can be read.
TEST(memory_that_cannot_be_read_is_staged_though_another_rank_reduces_in_place) {
  auto values = tensors(2);
  std::vector<float> result(kCount);
  auto* closed = static_cast<float*>(mmap(nullptr, kCount * 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  Ranks ranks(2);
  Submission refused = allreduce_of("", values[1], &result, DType::kFloat32);
  refused.pieces[0].in = reinterpret_cast<char*>(closed);
  ranks.submit(0, allreduce_of("", values[0], &values[0], DType::kFloat32));
  ranks.submit(1, refused);
  for (int i = 0; i < 2; ++i)
    for (int rank : {0, 1}) CHECK(ranks.step(rank));
  mprotect(closed, kCount * 4, PROT_READ | PROT_WRITE);
  for (size_t i = 0; i < kCount; ++i) closed[i] = 2;
  while (!ranks.done(0) || !ranks.done(1))
    for (int rank : {0, 1}) CHECK_OK(ranks.move(rank));
  for (size_t i = 0; i < kCount; ++i) CHECK_EQ(values[0][i], 3.0f);
  for (size_t i = 0; i < kCount; ++i) CHECK_EQ(result[i], 3.0f);
  munmap(closed, kCount * 4);
}

TEST(a_block_that_cannot_be_is_an_error) {
  auto values = tensors(2);
  Ranks ranks(2);
  for (int rank : {0, 1}) {
    Submission s = gather_of(values[rank]);
    s.kind = find_kind("alltoall");
    const int64_t half = kCount * 2;
    s.counts = {half, rank ? half : int64_t{1} << 60};
    ranks.submit(rank, s);
  }
  Status status;
  for (int i = 0; i < 20 && status.is_ok(); ++i)
    for (int rank : {0, 1})
      if (status.is_ok()) status = ranks.move(rank);
  CHECK(status.code() == Code::kPeerLost);
  CHECK(status.text().find("which cannot be") != std::string::npos);
}

// Both ways are timed, the first rank of the set says which it is, and the slower one is tried now and then.
TEST(the_quicker_way_is_found) {
  Ways::Record first;
  const auto reads = [&](int64_t stage_ns, int64_t read_ns, int calls) {
    int count = 0;
    for (int i = 0; i < calls; ++i) {
      const bool read = first.reads(), next = first.word();
      first.slowest(first.last());
      first.hear(next);
      first.took(read, read ? read_ns : stage_ns);
      count += read;
    }
    return count;
  };
  const int both = reads(50'000, 100'000, 8);
  CHECK(both >= 2 && both <= 6);
  CHECK(reads(50'000, 100'000, 320) <= 20);   // of which some see whether it is so still
  CHECK(reads(200'000, 100'000, 320) >= 200);  // the cores have moved apart
  CHECK(reads(200'000, 100'000, 320) >= 300);
  CHECK(reads(50'000, 100'000, 320) <= 80);
}

TEST(a_rank_that_is_late_once_changes_nothing) {
  Ways::Record record;
  for (int i = 0; i < 100; ++i) {
    const bool read = record.reads(), next = record.word();
    record.slowest(record.last());
    record.hear(next);
    record.took(read, i % 10 == 5 ? 9'000'000 : read ? 50'000 : 100'000);
    if (i > 12 && i % 32 > 2) CHECK(read);
  }
}

TEST(what_can_be_read) {
  PeerMemory memory({0}, {getpid()});
  constexpr size_t kBytes = 1 << 20;
  auto* pages = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  CHECK(memory.readable(pages, kBytes));
  CHECK(memory.readable(nullptr, 0));
  mprotect(pages + kBytes - 4096, 4096, PROT_NONE);
  CHECK(!memory.readable(pages, kBytes));
  CHECK(memory.readable(pages, kBytes - 4096));
  munmap(pages, kBytes);
}

TEST(another_process_is_read) {
  std::vector<char> here(100'000, 7), there(100'000, 0);
  const PeerMemory::Word word = PeerMemory::offer();
  Sleeper other;  // has all that as it is now
  here.assign(here.size(), 8);
  CHECK_OK(PeerMemory::attempt(other.pid(), word));
  CHECK(PeerMemory::attempt(other.pid(), {word.address, word.value + 1}).text().find("is another one here") != std::string::npos);
  PeerMemory memory({4}, {other.pid()});
  CHECK_OK(memory.read(4, here.data(), there.data(), there.size()));
  CHECK(there == std::vector<char>(there.size(), 7));
}

TEST(an_address_that_is_none_is_an_error) {
  Sleeper other;
  PeerMemory memory({4}, {other.pid()});
  char byte;
  const Status status = memory.read(4, nullptr, &byte, 1);
  CHECK_EQ(status.text(), "the memory of rank 4 (process " + std::to_string(other.pid()) + ") cannot be read: Bad address");
}

// The end of what is mapped is an error, too, not a part of the data.
TEST(a_short_read_is_an_error) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* pages = static_cast<char*>(mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  munmap(pages + page, page);
  Sleeper other;
  PeerMemory memory({4}, {other.pid()});
  std::vector<char> to(2 * page);
  const Status status = memory.read(4, pages, to.data(), to.size());
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find(std::to_string(page) + " of " + std::to_string(2 * page) + " bytes came") != std::string::npos);
  munmap(pages, page);
}

TEST(a_process_that_has_died_is_named) {
  char byte = 1, to = 0;
  Sleeper other;
  const int pid = other.pid();
  PeerMemory memory({4}, {pid});
  CHECK_OK(memory.read(4, &byte, &to, 1));
  other.end();
  const Status status = memory.read(4, &byte, &to, 1);
  CHECK(status.code() == Code::kPeerLost);
  CHECK_EQ(status.text(), "rank 4 (process " + std::to_string(pid) + " on this host) has died");
}

TEST_MAIN()
