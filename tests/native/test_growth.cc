// How the agreement between hosts grows with their number: 16 to 1,024 leaders in one thread,
// every message counted. A step here is 20 operations that become ready together.
#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "counting_net.h"
#include "agreement/host_tree.h"
#include "loopback_net.h"

using namespace ringreduce;

namespace {

struct Leader {
  Topology topology;
  Traffic traffic;
  std::unique_ptr<CountingNet> net;
  std::unique_ptr<HostTree> tree;
  std::vector<Key> decided;
};

struct Cost {
  double average = 0;
  int most = 0, rounds = 0;
};

constexpr int kArity = 8, kOperations = 20;

// One step: all leaders report the same operations, each in its own order.
Cost run_step(int hosts) {
  LoopbackWorld world(hosts, {});
  std::vector<int> all(hosts);
  for (int i = 0; i < hosts; ++i) all[i] = i;
  std::vector<Leader> leaders(hosts);
  for (int host = 0; host < hosts; ++host) {
    Leader& leader = leaders[host];
    leader.topology = make_topology(host, all, all);
    leader.net = std::make_unique<CountingNet>(world.net(host), &leader.traffic);
    Channel channel;
    channel.topology = &leader.topology;
    channel.net = leader.net.get();
    leader.tree = std::make_unique<HostTree>(channel, kArity, size_t{1} << 20);
    for (int i = 0; i < kOperations; ++i) {
      Entry entry{};
      const int operation = (i + host) % kOperations;
      entry.key = {static_cast<uint64_t>(operation), 1};
      entry.signature = 7;
      CHECK_OK(leader.tree->report(static_cast<uint32_t>(operation), entry, nullptr, {}));
    }
  }
  Cost cost;
  for (int finished = 0; finished < hosts; ++cost.rounds) {
    CHECK(cost.rounds < 1000);
    finished = 0;
    for (Leader& leader : leaders) {
      bool moved = false;
      CHECK_OK(leader.tree->advance(&moved));
      HostTree::Decided decided;
      while (leader.tree->next(&decided)) leader.decided.push_back({decided.entry, 1});
      finished += static_cast<int>(leader.decided.size()) == kOperations && !leader.tree->sending();
    }
  }
  for (const Leader& leader : leaders) {
    CHECK(leader.decided == leaders[0].decided);  // one order for all
    cost.average += static_cast<double>(leader.traffic.sends.load()) / hosts;
    cost.most = std::max(cost.most, leader.traffic.sends.load());
  }
  return cost;
}

}  // namespace

TEST(messages_a_rank_do_not_grow_with_the_number_of_hosts) {
  std::printf("%8s %22s %22s\n", "hosts", "messages a rank (mean)", "messages a rank (most)");
  for (int hosts : {16, 64, 256, 1024}) {
    const Cost cost = run_step(hosts);
    std::printf("%8d %22.2f %22d\n", hosts, cost.average, cost.most);
    // One report up and one decision to each child, for all the operations of the step; a few
    // more where reports of a subtree arrive in several parts.
    CHECK(cost.average <= 4);
    CHECK(cost.most <= 2 * (kArity + 1));
  }
}

TEST_MAIN()
