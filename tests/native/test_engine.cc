// The engine end to end, every rank a thread (world.h): all collectives over all layouts of
// hosts, random schedules, plans, disagreement, shutdown.
#include <algorithm>
#include <numeric>
#include <random>

#include "world.h"

using namespace ringreduce;

namespace {

const std::vector<std::vector<int>> kLayouts = {
    {0}, {0, 0}, {0, 0, 0}, {0, 0, 0, 0},      // one host
    {0, 1}, {0, 0, 1, 1}, {0, 1, 1, 1}, {0, 1, 0, 1},  // two
    {0, 1, 2}, {0, 1, 2, 3, 4}, {0, 0, 1, 1, 2, 2, 3}, // more
};

WorldOptions layout(const std::vector<int>& host_of, bool single_copy = false) {
  WorldOptions options;
  options.single_copy = single_copy;
  options.host_of = host_of;
  options.net = {host_of.size() * 7 + 1, 0.3};
  return options;
}

// Exactly representable, different for every rank and element.
float value(int rank, size_t i) { return static_cast<float>((i * 7 + rank * 13) % 101) - 50; }

float sum_over(int ranks, size_t i) {
  float sum = 0;
  for (int rank = 0; rank < ranks; ++rank) sum += value(rank, i);
  return sum;
}

void check_allreduce(int rank, int size, Engine& engine, size_t count, const std::string& name) {
  std::vector<float> in(count), out(count, -1);
  for (size_t i = 0; i < count; ++i) in[i] = value(rank, i);
  OpRef op;
  CHECK_OK(engine.submit(0, allreduce_of(name, in, &out, DType::kFloat32), true, &op));
  CHECK_OK(wait_for(engine, op));
  for (size_t i = 0; i < count; ++i) CHECK_EQ(out[i], sum_over(size, i));
}

void check_broadcast(int rank, Engine& engine, size_t count, int root) {
  std::vector<float> in(count), out(count, -1);
  for (size_t i = 0; i < count; ++i) in[i] = value(rank, i);
  Submission s = allreduce_of("", in, &out, DType::kFloat32);
  s.kind = find_kind("broadcast");
  s.root = root;
  OpRef op;
  CHECK_OK(engine.submit(0, s, true, &op));
  CHECK_OK(wait_for(engine, op));
  for (size_t i = 0; i < count; ++i) CHECK_EQ(out[i], value(root, i));
}

void check_allgather(int rank, int size, Engine& engine, size_t unit) {
  const size_t count = unit * rank;  // rank 0 has nothing
  std::vector<float> in(count), none;
  for (size_t i = 0; i < count; ++i) in[i] = value(rank, i);
  Submission s = allreduce_of("", in, &none, DType::kFloat32);
  s.kind = find_kind("allgather");
  s.shape = {};
  OpRef op;
  CHECK_OK(engine.submit(0, s, true, &op));
  CHECK_OK(wait_for(engine, op));
  const float* at = reinterpret_cast<const float*>(op->output.data.get());
  for (int from = 0; from < size; ++from) {
    CHECK_EQ(op->output.counts[from], static_cast<int64_t>(unit * from * sizeof(float)));
    for (size_t i = 0; i < unit * from; ++i) CHECK_EQ(*at++, value(from, i));
  }
}

void check_reducescatter(int rank, int size, Engine& engine, size_t unit) {
  std::vector<int64_t> counts;
  std::vector<size_t> offsets;
  size_t total = 0;
  for (int to = 0; to < size; ++to) {
    offsets.push_back(total);
    counts.push_back(static_cast<int64_t>((unit + to % 3) * sizeof(float)));
    total += unit + to % 3;
  }
  std::vector<float> in(total), out(counts[rank] / sizeof(float), -1);
  for (size_t i = 0; i < total; ++i) in[i] = value(rank, i);
  Submission s = allreduce_of("", in, &out, DType::kFloat32);
  s.kind = find_kind("reducescatter");
  s.outputs = {{s.pieces[0].out, out.size() * sizeof(float)}};
  s.counts = counts;
  OpRef op;
  CHECK_OK(engine.submit(0, s, true, &op));
  CHECK_OK(wait_for(engine, op));
  for (size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], sum_over(size, offsets[rank] + i));
}

void check_alltoall(int rank, int size, Engine& engine, size_t unit) {
  const auto block = [unit](int from, int to) { return unit * ((from + 2 * to) % 3); };
  std::vector<float> in, none;
  std::vector<int64_t> counts;
  for (int to = 0; to < size; ++to) {
    counts.push_back(static_cast<int64_t>(block(rank, to) * sizeof(float)));
    for (size_t i = 0; i < block(rank, to); ++i) in.push_back(value(rank * 16 + to, i));
  }
  Submission s = allreduce_of("", in, &none, DType::kFloat32);
  s.kind = find_kind("alltoall");
  s.counts = counts;
  s.shape = {};
  OpRef op;
  CHECK_OK(engine.submit(0, s, true, &op));
  CHECK_OK(wait_for(engine, op));
  const float* at = reinterpret_cast<const float*>(op->output.data.get());
  for (int from = 0; from < size; ++from)
    for (size_t i = 0; i < block(from, rank); ++i) CHECK_EQ(*at++, value(from * 16 + rank, i));
}

void check_barrier(Engine& engine) {
  OpRef op;
  CHECK_OK(engine.submit(0, barrier(), true, &op));
  CHECK_OK(wait_for(engine, op));
}

}  // namespace

void check_collectives_over_all_layouts(bool single_copy) {
  for (const auto& hosts : kLayouts) {
    World world(layout(hosts, single_copy));
    const int n = world.size();
    world.run([n](int rank, Engine& engine) {
      for (size_t count : {0, 1, n - 1, n, n + 1, 64, 65, 997, 1024, 5000, 30011}) {
        check_allreduce(rank, n, engine, count, count % 2 ? "a" : "");
        check_broadcast(rank, engine, count, static_cast<int>(count) % n);
        check_allgather(rank, n, engine, count / 2);
        check_reducescatter(rank, n, engine, count / 3);
        check_alltoall(rank, n, engine, count / 4);
        check_barrier(engine);
      }
    });
  }
}

TEST(collectives_over_all_layouts) { check_collectives_over_all_layouts(false); }
TEST(collectives_over_all_layouts_by_single_copy) { check_collectives_over_all_layouts(true); }

void check_any_order_mixed_kinds_and_sets(bool single_copy) {
  for (const auto& hosts : kLayouts) {
    if (hosts.size() < 2) continue;
    World world(layout(hosts, single_copy));
    const int n = world.size();
    std::vector<int> all(n), odd, low = {0, 1};
    std::iota(all.begin(), all.end(), 0);
    for (int i = 0; i < n; i += 2) odd.push_back(i);
    const std::vector<std::vector<int>> sets = {all, odd, low};
    world.run([&](int rank, Engine& engine) {
      for (int id = 1; id < 3; ++id) {
        if (std::count(sets[id].begin(), sets[id].end(), rank))
          CHECK_OK(engine.add_set(id, sets[id], world.set_segment("set" + std::to_string(id), rank, sets[id])));
      }
      std::mt19937 common(5), own(rank);
      for (int window = 0; window < 6; ++window) {
        struct Item {
          int set;
          size_t count;
          std::string name;
          std::vector<float> in, out;
          OpRef op;
        };
        std::vector<Item> items;
        for (int i = 0; i < 40; ++i) {
          Item item{static_cast<int>(common() % 3), common() % 4 ? common() % 300 : common() % 6000, "op" + std::to_string(i), {}, {}, {}};
          if (!std::count(sets[item.set].begin(), sets[item.set].end(), rank)) continue;
          item.in.resize(item.count);
          item.out.resize(item.count);
          for (size_t k = 0; k < item.count; ++k) item.in[k] = value(rank, k);
          items.push_back(std::move(item));
        }
        std::shuffle(items.begin(), items.end(), own);
        for (Item& item : items)
          CHECK_OK(engine.submit(item.set, allreduce_of(item.name, item.in, &item.out, DType::kFloat32), true, &item.op));
        std::shuffle(items.begin(), items.end(), own);
        for (Item& item : items) {
          CHECK_OK(wait_for(engine, item.op));
          for (size_t k = 0; k < item.count; ++k) {
            float sum = 0;
            for (int member : sets[item.set]) sum += value(member, k);
            CHECK_EQ(item.out[k], sum);
          }
        }
      }
    });
  }
}

TEST(any_order_mixed_kinds_and_sets) { check_any_order_mixed_kinds_and_sets(false); }
TEST(any_order_mixed_kinds_and_sets_by_single_copy) { check_any_order_mixed_kinds_and_sets(true); }

TEST(plans_reduce_in_place) {
  for (const auto& hosts : kLayouts) {
    World world(layout(hosts));
    const int n = world.size();
    const std::vector<BucketSpec> buckets = {{5, DType::kFloat32}, {700000, DType::kFloat32}, {1000, DType::kFloat64}};
    world.run([&](int rank, Engine& engine) {
      const int locals = static_cast<int>(std::count(hosts.begin(), hosts.end(), hosts[rank]));
      auto arena = world.segment("arena", hosts[rank], ArenaPlan::segment_bytes(locals, buckets));
      std::shared_ptr<ArenaPlan> plan;
      CHECK_OK(engine.add_plan(0, buckets, kOpSum, 1, 2, arena, 130, &plan));
      for (int step = 0; step < 3; ++step) {
        for (int b : {0, 1, 2}) {
          for (size_t i = 0; i < buckets[b].count; ++i) {
            if (b == 2) reinterpret_cast<double*>(plan->buffer(b))[i] = value(rank + step, i);
            else reinterpret_cast<float*>(plan->buffer(b))[i] = value(rank + step, i);
          }
          CHECK_OK(engine.launch(*plan, b));
        }
        if (step == 1) check_allreduce(rank, n, engine, 3000, "beside");
        for (int b : {2, 0, 1}) {
          for (bool done = false; !done;) CHECK_OK(engine.wait_bucket(*plan, b, 1, &done));
          for (size_t i = 0; i < buckets[b].count; ++i) {
            float sum = 0;
            for (int r = 0; r < n; ++r) sum += value(r + step, i);
            const double got = b == 2 ? reinterpret_cast<double*>(plan->buffer(b))[i] : reinterpret_cast<float*>(plan->buffer(b))[i];
            CHECK_EQ(got, 2.0 * sum);
          }
        }
      }
      engine.remove_plan(plan);
    });
  }
}

TEST(disagreement_is_reported_on_every_rank_and_harms_nothing) {
  for (const auto& hosts : kLayouts) {
    if (hosts.size() < 2) continue;
    World world(layout(hosts));
    const int n = world.size();
    world.run([n](int rank, Engine& engine) {
      for (size_t count : {2, 3000}) {
        std::vector<float> in(count + (rank == 1)), out(in.size());
        OpRef op;
        CHECK_OK(engine.submit(0, allreduce_of("bad", in, &out, DType::kFloat32), true, &op));
        const Status status = wait_for(engine, op);
        CHECK(status.code() == Code::kMismatch);
        CHECK(status.text().find("allreduce 'bad'") != std::string::npos);
        CHECK(status.text().find("rank 1 submitted allreduce Sum of float32 [" + std::to_string(count + 1) + "]") != std::string::npos);
        check_allreduce(rank, n, engine, 500, "good");
      }
    });
  }
}

TEST(a_pending_operation_holds_up_nobody) {
  for (const auto& hosts : {std::vector<int>{0, 0, 0}, std::vector<int>{0, 0, 1}}) {
    World world(layout(hosts));
    world.run([&](int rank, Engine& engine) {
      std::vector<float> in(10, 1), out(10);
      OpRef late;
      if (rank != 2) CHECK_OK(engine.submit(0, allreduce_of("late", in, &out, DType::kFloat32), true, &late));
      for (int i = 0; i < 50; ++i) check_allreduce(rank, 3, engine, 100, "early");
      check_barrier(engine);
      if (rank == 2) CHECK_OK(engine.submit(0, allreduce_of("late", in, &out, DType::kFloat32), true, &late));
      CHECK_OK(wait_for(engine, late));
      CHECK_EQ(out[9], 3.0f);
    });
  }
}

TEST(a_name_in_flight_is_refused) {
  World world(layout({0, 0}));
  world.run([](int rank, Engine& engine) {
    std::vector<float> in(10, 1), out(10);
    OpRef op, again;
    if (rank == 0) {
      CHECK_OK(engine.submit(0, allreduce_of("x", in, &out, DType::kFloat32), true, &op));
      CHECK(engine.submit(0, allreduce_of("x", in, &out, DType::kFloat32), true, &again).code() == Code::kInvalid);
    }
    check_barrier(engine);
    if (rank == 1) CHECK_OK(engine.submit(0, allreduce_of("x", in, &out, DType::kFloat32), true, &op));
    CHECK_OK(wait_for(engine, op));
  });
}

TEST(a_rank_that_shuts_down_is_named) {
  for (const auto& hosts : {std::vector<int>{0, 0, 0}, std::vector<int>{0, 0, 1}, std::vector<int>{0, 1, 1}}) {
    World world(layout(hosts));
    world.run([](int rank, Engine& engine) {
      check_barrier(engine);
      if (rank == 2) return;
      std::vector<float> in(10, 1), out(10);
      OpRef op;
      CHECK_OK(engine.submit(0, allreduce_of("alone", in, &out, DType::kFloat32), true, &op));
      const Status status = wait_for(engine, op);
      CHECK(status.code() == Code::kPeerLost);
      // The other survivor may have given up by now, and be named beside rank 2.
      CHECK(status.text().find("2 ha") != std::string::npos && status.text().find("shut down") != std::string::npos);
    });
  }
}

// What it says last, it says on all hosts: to those who wait for a collective, for a message, and on another set.
TEST(why_a_rank_goes_early_is_told) {
  for (const auto& hosts : {std::vector<int>{0, 0, 0}, std::vector<int>{0, 1, 1}, std::vector<int>{0, 1, 2}, std::vector<int>{0, 0, 1}}) {
    World world(layout(hosts));
    world.run([](int rank, Engine& engine) {
      check_barrier(engine);
      if (rank == 2) return engine.close(5, "ValueError: no such batch (train.py:7)");
      std::vector<float> in(10, 1), out(10);
      OpRef op;
      CHECK_OK(engine.submit(0, allreduce_of("alone", in, &out, DType::kFloat32), true, &op));
      const std::string text = wait_for(engine, op).text();
      // The other survivor may have given up by now.
      CHECK(text.find("2 has shut down after ValueError: no such batch (train.py:7)") != std::string::npos ||
            text.find("2 have shut down, rank 2 after ValueError: no such batch (train.py:7)") != std::string::npos);
    });
  }
}

// Words of any length, and bytes in their place that are none.
TEST(last_words_are_cut) {
  const auto board = std::make_unique<FarewellBoard>();
  const Topology here = make_topology(0, {0, 1, 2}, {0, 0, 1});
  Farewells said(board.get(), &here);
  CHECK(said.ranks().empty() && said.why(0).empty() && said.why(2).empty());
  said.say(std::string(9000, 'x'));
  said.hear(2, "");
  CHECK(said.ranks() == (std::vector<int>{0, 2}) && said.here() == std::vector<int>{0});
  CHECK_EQ(said.why(0).size(), FarewellBoard::Words::kMost);
  CHECK_EQ(said.text({2}), "rank 2 has shut down");
  CHECK_EQ(said.text({0, 2}).find("ranks 0, 2 have shut down, rank 0 after xxx"), 0u);
  const auto other = std::make_unique<FarewellBoard>();
  std::string text(1, 'x');
  for (int i = 0; i < 400; ++i) text += "\u00e9";  // of two bytes
  Farewells(other.get(), &here).say(text);
  CHECK_EQ(Farewells(other.get(), &here).why(0), text.substr(0, FarewellBoard::Words::kMost - 1));
  board->words[0].bytes = 1 << 30;
  CHECK_EQ(said.why(0).size(), FarewellBoard::Words::kMost);
}

TEST_MAIN()
