// Who sits where: the ranks of one process set, grouped by host. Pure arithmetic.
//
//   set rank     0 1 2 3 4        local index: a rank's position on its host
//   host         A B A B B        rails: how many ranks of every host talk to other hosts,
//   local index  0 0 1 1 2               the smallest local size (here 2): rail r of host A
//                                        exchanges its slice with rail r of host B
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace ringreduce {

constexpr int kMaxLocal = 256;  // ranks of a process set on one host

struct Topology {
  int rank = 0;   // this rank within the set
  int size = 1;
  std::vector<int> world;               // set rank -> world rank, ascending
  std::vector<int> host_of;             // set rank -> host index 0..H-1
  std::vector<int> local_of;            // set rank -> local index on its host
  std::vector<std::vector<int>> hosts;  // host index -> its set ranks, ascending
  int rails = 1;

  int host() const { return host_of[rank]; }
  int local() const { return local_of[rank]; }
  int host_count() const { return static_cast<int>(hosts.size()); }
  int local_size() const { return static_cast<int>(hosts[host()].size()); }
  const std::vector<int>& local_ranks() const { return hosts[host()]; }
  bool leader() const { return local() == 0; }

  // The rank of another host that stands for local index `local` there: the one of the same
  // index, or a lower one where that host has fewer ranks.
  int counterpart(int host, int local) const {
    return hosts[host][local % static_cast<int>(hosts[host].size())];
  }
};

// "rank 3", "ranks 0, 2, 5"; of many the first ones.
inline std::string show_ranks(const std::vector<int>& ranks) {
  constexpr size_t kMost = 16;
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < std::min(ranks.size(), kMost); ++i) text += (i ? ", " : "") + std::to_string(ranks[i]);
  return ranks.size() > kMost ? text + " and " + std::to_string(ranks.size() - kMost) + " more" : text;
}

// Who has not come to what others wait for.
struct Missing {
  std::vector<int> ranks;      // of the world: sure to be missing, as far as this rank can know
  std::vector<int> elsewhere;  // of other hosts: at least one of them is missing
  std::string text;            // "" where nobody is
};

// `members`: the set's world ranks; `world_host_of`: world rank -> host.
inline Topology make_topology(int world_rank, std::vector<int> members,
                              const std::vector<int>& world_host_of) {
  Topology t;
  std::sort(members.begin(), members.end());
  t.world = members;
  t.size = static_cast<int>(members.size());
  std::vector<int> seen;  // world host ids in order of first appearance
  for (int i = 0; i < t.size; ++i) {
    if (members[i] == world_rank) t.rank = i;
    const int id = world_host_of[members[i]];
    auto at = std::find(seen.begin(), seen.end(), id);
    const int host = static_cast<int>(at - seen.begin());
    if (at == seen.end()) {
      seen.push_back(id);
      t.hosts.emplace_back();
    }
    t.host_of.push_back(host);
    t.local_of.push_back(static_cast<int>(t.hosts[host].size()));
    t.hosts[host].push_back(i);
  }
  size_t smallest = t.hosts[0].size();
  for (const auto& ranks : t.hosts) smallest = std::min(smallest, ranks.size());
  t.rails = static_cast<int>(smallest);
  return t;
}

}  // namespace ringreduce
