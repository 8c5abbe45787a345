// Who owns the memory of an operation while the core may come to it; and groups, of which all operations
// are submitted or none.
#include <atomic>

#include "fault_net.h"
#include "world.h"

using namespace ringreduce;

namespace {

// Says when it is let go of.
std::shared_ptr<void> kept(std::atomic<bool>* gone) {
  return std::shared_ptr<void>(gone, [](void* flag) { *static_cast<std::atomic<bool>*>(flag) = true; });
}

WorldOptions hosts(std::vector<int> host_of) {
  WorldOptions options;
  options.host_of = std::move(host_of);
  return options;
}

Submission sum_of(const std::string& name, std::vector<float>& values, std::atomic<bool>* gone) {
  Submission s = allreduce_of(name, values, &values, DType::kFloat32);
  s.keep = kept(gone);
  return s;
}

}  // namespace

TEST(until_it_is_done_and_no_longer) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    for (size_t count : {10, 30000}) {
      World world(hosts(layout));
      std::vector<float> values[] = {std::vector<float>(count, 1), std::vector<float>(count, 1)};
      std::atomic<bool> gone[2] = {{false}, {false}};
      world.run([&](int rank, Engine& engine) {
        OpRef op;
        if (rank == 0) {
          CHECK_OK(engine.submit(0, sum_of("x", values[0], &gone[0]), true, &op));
          bool done = true;
          CHECK(engine.wait(*op, 0.05, 0.1, &done).code() == Code::kTimeout);
          CHECK(!done && !gone[0]);
          op.reset();  // nobody waits for it any more
        }
        world.meet();
        if (rank == 1) {
          CHECK_OK(engine.submit(0, sum_of("x", values[1], &gone[1]), true, &op));
          CHECK_OK(wait_for(engine, op));
          CHECK(gone[1]);
          CHECK_EQ(values[1].back(), 2.0f);
        }
        OpRef next;
        CHECK_OK(engine.submit(0, barrier(), true, &next));
        CHECK_OK(wait_for(engine, next));
        while (!gone[0]) std::this_thread::yield();
        CHECK_EQ(values[0].back(), 2.0f);
      });
    }
  }
}

TEST(an_operation_that_is_given_up_lets_go) {
  World world(hosts({0, 0}));
  std::vector<float> values(10);
  std::atomic<bool> gone{false};
  auto engine = world.engine(0);
  OpRef op;
  CHECK_OK(engine->submit(0, sum_of("alone", values, &gone), true, &op));
  CHECK(!gone);
  engine->close(0);
  CHECK(op->is_done() && gone);
}

TEST(memory_may_be_given_later) {
  World world(hosts({0, 0}));
  std::vector<float> values(10);
  std::atomic<bool> gone[2] = {{false}, {false}};
  auto engine = world.engine(0);
  OpRef op;
  CHECK_OK(engine->submit(0, allreduce_of("alone", values, &values, DType::kFloat32), true, &op));
  engine->keep(op, kept(&gone[0]));
  CHECK(!gone[0]);
  engine->close(0);
  CHECK(gone[0]);
  engine->keep(op, kept(&gone[1]));
  CHECK(gone[1]);
}

// The network still has the addresses of messages in flight.
TEST(not_before_transfers_between_hosts_are_over) {
  LoopbackWorld net(2, {});
  std::vector<float> values[] = {std::vector<float>(300'000, 1), std::vector<float>(300'000, 1)};
  std::atomic<bool> gone[2] = {{false}, {false}};
  std::vector<std::thread> ranks;
  for (int rank : {0, 1})
    ranks.emplace_back([&, rank] {
      EngineConfig config;
      config.rank = rank;
      config.size = 2;
      config.host_of = {0, 1};
      config.settings.chunk_bytes = 4096;
      config.segment = Segment::in_process(ProcessSet::segment_bytes(1, 4096));
      std::vector<Fault> faults(1);
      faults[0].nth = 100;
      faults[0].action = Fault::Action::kFail;
      config.net = std::make_unique<FaultNet>(net.net(rank), faults);
      Engine engine(std::move(config));
      OpRef op;
      CHECK_OK(engine.submit(0, sum_of("x", values[rank], &gone[rank]), true, &op));
      CHECK(wait_for(engine, op).code() == Code::kSystem);
      CHECK(!gone[rank]);
      engine.close(0);
      CHECK(!gone[rank]);
    });
  for (std::thread& rank : ranks) rank.join();
}

TEST(a_group_is_refused_as_a_whole) {
  World world(hosts({0, 0}));
  world.run([&](int rank, Engine& engine) {
    std::vector<float> taken(10, 1), first(10, 100), second(10, 100);
    std::atomic<bool> gone[5] = {};
    OpRef op;
    std::vector<OpRef> ops;
    if (rank == 0) {
      CHECK_OK(engine.submit(0, sum_of("taken", taken, &gone[0]), true, &op));
      const Status status = engine.submit(0, {sum_of("first", first, &gone[1]), sum_of("taken", second, &gone[2])}, true, &ops);
      CHECK(status.code() == Code::kInvalid);
      CHECK(status.text().find("'taken' is in flight already (rank 1 has not submitted it)") != std::string::npos);
      ops.clear();
      CHECK(gone[1] && gone[2] && !gone[0]);
    }
    world.meet();
    if (rank == 1) CHECK_OK(engine.submit(0, sum_of("taken", taken, &gone[0]), true, &op));
    CHECK_OK(wait_for(engine, op));
    // Nothing of the refused group is left, on which the next one of the name would depend.
    first.assign(10, 1);
    CHECK_OK(engine.submit(0, {sum_of("first", first, &gone[3]), sum_of("taken", taken, &gone[4])}, true, &ops));
    for (const OpRef& one : ops) CHECK_OK(wait_for(engine, one));
    CHECK_EQ(first[0], 2.0f);
    CHECK_EQ(taken[0], 4.0f);
  });
}

TEST_MAIN()
