// How threads wait: no ring of the bell is missed, and a thread that drives the engine without pause
// keeps nobody out of it.
#include <atomic>
#include <csignal>

#include <sys/mman.h>

#include "common/clock.h"
#include "world.h"

using namespace ringreduce;

namespace {

// The page of the bell. Its first writer is the rank that joins the sleepers: that is when a peer
// finishes the bucket, and rings for nobody.
constexpr size_t kPage = 4096;
char* bell_page = nullptr;
std::atomic<uint64_t>* finished = nullptr;

void finish_now(int, siginfo_t* info, void*) {
  const char* at = static_cast<char*>(info->si_addr);
  if (at < bell_page || at >= bell_page + kPage) std::_Exit(2);
  mprotect(bell_page, kPage, PROT_READ | PROT_WRITE);
  finished->fetch_add(1);
}

}  // namespace

// One of two ranks; the test does what the other one would do.
TEST(what_happens_while_a_rank_joins_the_sleepers_is_seen) {
  WorldOptions options;
  options.host_of = {0, 0};
  World world(options);
  const std::vector<BucketSpec> buckets = {{1000, DType::kFloat32}};
  auto engine = world.engine(0);
  auto arena = world.segment("arena", 0, ArenaPlan::segment_bytes(2, buckets));
  std::shared_ptr<ArenaPlan> plan;
  CHECK_OK(engine->add_plan(0, buckets, kOpSum, 1, 1, arena, 130, &plan));
  auto* counters = reinterpret_cast<Counter*>(arena->data());  // arrived, finished
  finished = &counters[1].value;
  bell_page = world.set_segment("world", 0, {0, 1})->data();
  struct sigaction handler = {}, before;
  handler.sa_sigaction = finish_now;
  handler.sa_flags = SA_SIGINFO;
  CHECK_EQ(sigaction(SIGSEGV, &handler, &before), 0);

  counters[0].value.fetch_add(1);
  CHECK_OK(engine->launch(*plan, 0));
  CHECK_EQ(finished->load(), 1u);
  CHECK_EQ(mprotect(bell_page, kPage, PROT_READ), 0);
  const int64_t start = now_ns();
  bool done = false;
  CHECK_OK(engine->wait_bucket(*plan, 0, check::patience_s(), &done));
  CHECK_EQ(finished->load(), 2u);
  CHECK(done);
  CHECK(now_ns() - start < check::patience_ns() / 2);  // a rank that has missed it sleeps all the time
  sigaction(SIGSEGV, &before, nullptr);
  engine->close(0);
}

// A large operation of a single rank always moves, so the thread that waits for it lets go of the
// engine only to take it again at once.
TEST(a_driver_keeps_no_submitter_out) {
  WorldOptions options;
  options.host_of = {0};
  World world(options);
  world.run([](int, Engine& engine) {
    std::vector<float> in(64 << 20, 1), out(in.size());
    Submission large = allreduce_of("large", in, &out, DType::kFloat32);
    large.prescale = 2;
    OpRef op;
    CHECK_OK(engine.submit(0, large, false, &op));
    std::atomic<bool> driving{false};
    std::thread driver([&] {
      driving = true;
      CHECK_OK(wait_for(engine, op));
    });
    while (!driving) std::this_thread::yield();
    // The driver lets go of the engine about 60 times.
    for (int i = 0; i < 32; ++i) {
      OpRef small;
      CHECK_OK(engine.submit(0, barrier(), true, &small));
    }
    CHECK(!op->is_done());
    driver.join();
    CHECK_EQ(out.back(), 2.0f);
  });
}

// A ring that is left out shows as nothing but time, as sleepers look again after 0.1 s. So here rings are counted:
// the test itself is a sleeper all the time, and each ring changes the bell's ticket by one.
struct Pair {
  Pair() : world({{0, 0}}), memory(world.set_segment("world", 0, {0, 1})), engines{world.engine(0), world.engine(1)} {
    bell().enter();
  }
  ~Pair() {
    bell().leave();
    for (auto& engine : engines) engine->close(0);
  }
  Bell& bell() { return *reinterpret_cast<Bell*>(memory->data()); }

  template <typename Act>
  uint32_t rings(Act act) {
    const uint32_t before = bell().ticket();
    act();
    return bell().ticket() - before;
  }
  void allreduce(size_t numel) {
    std::vector<float> in(numel, 1), out[2] = {in, in};
    OpRef ops[2];
    for (int rank : {0, 1})
      CHECK_OK(engines[rank]->submit(0, allreduce_of("x", in, &out[rank], DType::kFloat32), false, &ops[rank]));
    both([&](int rank, bool* done) { return engines[rank]->wait(*ops[rank], 60, 1e-3, done); });
  }
  // Waits for what both ranks have begun, in turns.
  template <typename Wait>
  void both(Wait wait) {
    for (bool done[2] = {}; !done[0] || !done[1];)
      for (int rank : {0, 1}) CHECK_OK(wait(rank, &done[rank]));
  }

  World world;
  std::shared_ptr<Segment> memory;
  std::unique_ptr<Engine> engines[2];
};

TEST(whoever_posts_last_rings) {
  Pair pair;
  CHECK_EQ(pair.rings([&] { pair.allreduce(10); }), 1u);
}

// All have posted; have staged their parts; have reduced their slices; need the slot no more.
TEST(whoever_completes_a_step_rings) {
  Pair pair;
  CHECK_EQ(pair.rings([&] { pair.allreduce(2000); }), 1 + 3 * 2u);
}

// All have filled it, all have reduced their slices.
TEST(whoever_completes_a_bucket_rings) {
  Pair pair;
  const std::vector<BucketSpec> buckets = {{1000, DType::kFloat32}};
  auto arena = pair.world.segment("arena", 0, ArenaPlan::segment_bytes(2, buckets));
  std::shared_ptr<ArenaPlan> plans[2];
  for (int rank : {0, 1}) CHECK_OK(pair.engines[rank]->add_plan(0, buckets, kOpSum, 1, 1, arena, 130, &plans[rank]));
  CHECK_EQ(pair.rings([&] {
    for (int rank : {0, 1}) CHECK_OK(pair.engines[rank]->launch(*plans[rank], 0));
    pair.both([&](int rank, bool* done) { return pair.engines[rank]->wait_bucket(*plans[rank], 0, 1e-3, done); });
  }), 2u);
}

TEST_MAIN()
