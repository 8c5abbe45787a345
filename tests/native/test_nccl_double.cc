// The double of NCCL: its results against plain loops. How it fails: test_nccl_faults.cc.
#include <algorithm>
#include <csignal>
#include <type_traits>

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/half.h"
#include "nccl_ranks.h"

namespace ringreduce {
namespace {

// Elements of `rank`: small whole numbers, so that no order of a sum matters.
template <typename T>
std::vector<T> values(int rank, size_t count) {
  std::vector<T> all(count);
  for (size_t i = 0; i < count; ++i) all[i] = static_cast<T>((i * 7 + rank * 3) % 5 + 1);
  return all;
}

template <typename T>
T combined(int size, size_t i, int op) {
  T all{};
  for (int rank = 0; rank < size; ++rank) {
    const T next = static_cast<T>((i * 7 + rank * 3) % 5 + 1);
    if (rank == 0) all = next;
    else if (op == kNcclProd) all = static_cast<T>(all * next);
    else if (op == kNcclMax) all = std::max(all, next);
    else if (op == kNcclMin) all = std::min(all, next);
    else all = static_cast<T>(all + next);
  }
  if (op == kNcclAvg) all = std::is_integral_v<T> ? static_cast<T>(all / size) : static_cast<T>(all * static_cast<T>(1.0 / size));
  return all;
}

template <typename T>
void allreduces(NcclRank& mine, NcclDType dtype) {
  for (int op : {kNcclSum, kNcclProd, kNcclMax, kNcclMin, kNcclAvg}) {
    const size_t count = 1001;
    const std::vector<T> in = values<T>(mine.rank, count);
    std::vector<T> out(count);
    CHECK_EQ(mine.settled(nccl().all_reduce(in.data(), out.data(), count, dtype, op, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    for (size_t i = 0; i < count; ++i) CHECK_EQ(out[i], combined<T>(mine.size, i, op));
  }
}

TEST(allreduce_of_every_dtype_and_op) {
  on_all_sizes([](NcclRank& mine) {
    allreduces<int8_t>(mine, kNcclInt8);
    allreduces<uint8_t>(mine, kNcclUint8);
    allreduces<int32_t>(mine, kNcclInt32);
    allreduces<uint32_t>(mine, kNcclUint32);
    allreduces<int64_t>(mine, kNcclInt64);
    allreduces<uint64_t>(mine, kNcclUint64);
    allreduces<float>(mine, kNcclFloat32);
    allreduces<double>(mine, kNcclFloat64);
  });
}

TEST(allreduce_of_16_bit_floats) {
  on_all_sizes([](NcclRank& mine) {
    const float sum = 0.5f * static_cast<float>(mine.size * (mine.size + 1)) / 2;
    uint16_t half = float_to_half(0.5f * static_cast<float>(mine.rank + 1));
    uint16_t bfloat = static_cast<uint16_t>(bits_of(0.5f * static_cast<float>(mine.rank + 1)) >> 16);
    CHECK_EQ(mine.settled(nccl().all_reduce(&half, &half, 1, kNcclFloat16, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    CHECK_EQ(mine.settled(nccl().all_reduce(&bfloat, &bfloat, 1, kNcclBfloat16, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(half_to_float(half), sum);
    CHECK_EQ(float_of(uint32_t{bfloat} << 16), sum);
  });
}

TEST(large_allreduce_in_place_passes_through_small_pipes) {
  on_all_sizes([](NcclRank& mine) {
    std::vector<float> data = values<float>(mine.rank, 100'003);
    CHECK_EQ(mine.settled(nccl().all_reduce(data.data(), data.data(), data.size(), kNcclFloat32, kNcclSum, mine.comm, mine.stream)),
             kNcclSuccess);
    mine.finish();
    for (size_t i = 0; i < data.size(); ++i) CHECK_EQ(data[i], combined<float>(mine.size, i, kNcclSum));
  });
}

TEST(broadcast_allgather_and_reduce_scatter) {
  on_all_sizes([](NcclRank& mine) {
    const size_t count = 77;
    const auto size = static_cast<size_t>(mine.size);
    const std::vector<int> in = values<int>(mine.rank, count * size);
    for (int root = 0; root < mine.size; ++root) {
      std::vector<int> out(count);
      const bool in_place = root % 2;
      if (in_place) std::copy_n(in.begin(), count, out.begin());
      CHECK_EQ(mine.settled(nccl().broadcast(in_place ? out.data() : in.data(), out.data(), count, kNcclInt32, root, mine.comm,
                                             mine.stream)),
               kNcclSuccess);
      mine.finish();
      CHECK(out == values<int>(root, count));
    }
    std::vector<int> gathered(count * size);
    CHECK_EQ(mine.settled(nccl().all_gather(in.data(), gathered.data(), count, kNcclInt32, mine.comm, mine.stream)), kNcclSuccess);
    std::vector<int> scattered(count);
    CHECK_EQ(mine.settled(nccl().reduce_scatter(in.data(), scattered.data(), count, kNcclInt32, kNcclSum, mine.comm, mine.stream)),
             kNcclSuccess);
    mine.finish();
    for (size_t i = 0; i < count * size; ++i) CHECK_EQ(gathered[i], values<int>(static_cast<int>(i / count), count)[i % count]);
    for (size_t i = 0; i < count; ++i) CHECK_EQ(scattered[i], combined<int>(mine.size, mine.rank * count + i, kNcclSum));
  });
}

TEST(alltoall_by_sends_and_receives_in_a_group) {
  on_all_sizes([](NcclRank& mine) {
    // r sends r + 1 elements to each peer, and none to itself; long ones too.
    for (size_t unit : {1, 20'000}) {
      const auto count = [unit](int rank) { return (static_cast<size_t>(rank) + 1) * unit; };
      std::vector<std::vector<int>> out(mine.size);
      const std::vector<int> in(count(mine.rank), mine.rank + 10);
      CHECK_EQ(nccl().group_start(), kNcclSuccess);
      for (int peer = 0; peer < mine.size; ++peer) {
        if (peer == mine.rank) continue;
        out[peer].resize(count(peer));
        CHECK_EQ(nccl().send(in.data(), in.size(), kNcclInt32, peer, mine.comm, mine.stream), kNcclSuccess);
        CHECK_EQ(nccl().recv(out[peer].data(), out[peer].size(), kNcclInt32, peer, mine.comm, mine.stream), kNcclSuccess);
      }
      CHECK_EQ(mine.settled(nccl().group_end()), kNcclSuccess);
      mine.finish();
      for (int peer = 0; peer < mine.size; ++peer)
        for (int value : out[peer]) CHECK_EQ(value, peer + 10);
    }
  });
}

TEST(a_rank_may_send_to_itself_and_messages_keep_their_order) {
  on_all_sizes([](NcclRank& mine) {
    int first = 1, second = 2, got[2] = {};
    CHECK_EQ(nccl().group_start(), kNcclSuccess);
    nccl().recv(&got[0], 1, kNcclInt32, mine.rank, mine.comm, mine.stream);
    nccl().recv(&got[1], 1, kNcclInt32, mine.rank, mine.comm, mine.stream);
    nccl().send(&first, 1, kNcclInt32, mine.rank, mine.comm, mine.stream);
    nccl().send(&second, 1, kNcclInt32, mine.rank, mine.comm, mine.stream);
    CHECK_EQ(mine.settled(nccl().group_end()), kNcclSuccess);
    mine.finish();
    CHECK_EQ(got[0], 1);
    CHECK_EQ(got[1], 2);
  });
}

TEST(uneven_allgather_by_broadcasts_in_a_group) {
  on_all_sizes([](NcclRank& mine) {
    std::vector<int> in(mine.rank + 1, mine.rank), out(mine.size * (mine.size + 1) / 2), expected;
    CHECK_EQ(nccl().group_start(), kNcclSuccess);
    int* at = out.data();
    for (int root = 0; root < mine.size; ++root) {
      CHECK_EQ(nccl().broadcast(in.data(), at, root + 1, kNcclInt32, root, mine.comm, mine.stream), kNcclSuccess);
      at += root + 1;
      expected.insert(expected.end(), root + 1, root);
    }
    CHECK_EQ(mine.settled(nccl().group_end()), kNcclSuccess);
    mine.finish();
    CHECK(out == expected);
  });
}

// An operation is on the stream only when it is not in progress any more.
TEST(an_operation_is_in_progress_and_not_enqueued_yet) {
  doubles().reset();
  on_communicators(2, [](NcclRank& mine) {
    int one = 1;
    const int code = nccl().all_reduce(&one, &one, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream);
    CHECK_EQ(code, kNcclInProgress);
    CHECK(mine.idle());
    CHECK_EQ(mine.settled(code), kNcclSuccess);
    mine.finish();
    CHECK_EQ(one, 2);
    CHECK_EQ(mine.settled(nccl().all_reduce(&one, &one, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(one, 4);
  });
  CHECK_EQ(doubles().misuses(), 0);
  on_communicators(2, [](NcclRank& mine) {
    int one = 1;
    const int code = nccl().all_reduce(&one, &one, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream);
    CHECK(nccl().all_reduce(&one, &one, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream) != kNcclSuccess);
    CHECK_EQ(mine.settled(code), kNcclSuccess);
    mine.finish();
  });
  CHECK_EQ(doubles().misuses(), 2);
}

TEST(operations_of_a_communicator_run_in_their_order_on_any_stream) {
  doubles().reset();
  on_communicators(2, [](NcclRank& mine) {
    void* other = nullptr;
    CHECK_EQ(cuda().stream_create(&other), kCudaSuccess);
    int a = 1, b = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&a, &a, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    doubles().stall(mine.stream, 1);
    CHECK_EQ(mine.settled(nccl().all_reduce(&a, &a, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    CHECK_EQ(mine.settled(nccl().all_reduce(&b, &b, 1, kNcclInt32, kNcclMax, mine.comm, other)), kNcclSuccess);
    doubles().stall(mine.stream, 0);
    CHECK_EQ(doubles().stream_synchronize(other), 0);
    CHECK_EQ(a, 4);
    CHECK_EQ(b, 1);
    mine.finish();
    CHECK_EQ(doubles().stream_destroy(other), kCudaSuccess);
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

TEST(a_communicator_is_split) {
  doubles().reset();
  on_communicators(4, [](NcclRank& mine) {
    // Ranks 3, 1, 0 in this order, without rank 2.
    NcclComm child = nullptr;
    NcclConfig config;
    const int color = mine.rank == 2 ? NcclApi::kNoColor : 5;
    CHECK_EQ(mine.split(color, -mine.rank, &child), kNcclSuccess);
    if (mine.rank == 2) {
      CHECK(child == nullptr);
    } else {
      CHECK_EQ(NcclRank::settled(child, kNcclInProgress), kNcclSuccess);
      int in = mine.rank, out[3] = {};
      CHECK_EQ(NcclRank::settled(child, nccl().all_gather(&in, out, 1, kNcclInt32, child, mine.stream)), kNcclSuccess);
      mine.finish();
      CHECK(out[0] == 3 && out[1] == 1 && out[2] == 0);
      CHECK_EQ(nccl().comm_destroy(child), kNcclSuccess);
    }
    // The parent, and a second split of it.
    int sum = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(sum, 4);
    CHECK_EQ(mine.split(mine.rank % 2, 0, &child), kNcclSuccess);
    CHECK_EQ(NcclRank::settled(child, kNcclInProgress), kNcclSuccess);
    CHECK_EQ(NcclRank::settled(child, nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, child, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(sum, 8);
    CHECK_EQ(nccl().comm_destroy(child), kNcclSuccess);
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

TEST(blocking_communicators) {
  doubles().reset();
  const NcclUniqueId id = unique_id();
  on_ranks(3, [&](NcclRank& mine) {
    CHECK_EQ(mine.init(id, true), kNcclSuccess);
    int sum = 1;
    CHECK_EQ(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream), kNcclSuccess);
    mine.finish();
    CHECK_EQ(sum, 3);
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

TEST(a_captured_collective_runs_with_its_graph) {
  doubles().reset();
  on_communicators(2, [](NcclRank& mine) {
    int sum = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(doubles().capture_begin(mine.stream), 0);
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    void* graph = doubles().capture_end(mine.stream);
    CHECK_EQ(sum, 2);
    for (int expected : {4, 8}) {
      CHECK_EQ(doubles().graph_launch(graph, mine.stream), 0);
      mine.finish();
      CHECK_EQ(sum, expected);
    }
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

// --- between processes ---------------------------------------------------------------------------

// A rank in a process of its own, by the command line: --rank RANK SIZE DIES ID. Through a pipe on kDone
// and kFinished rank 0 learns that the others are through the operation they share, before it dies: NCCL
// may tell a rank of a lost peer as long as it is in one, also if that peer has finished its own part.
constexpr int kDone = 100, kFinished = 101;

int process_rank(char** argv) {
  const int size = std::atoi(argv[3]);
  const bool dies = std::atoi(argv[4]);
  NcclRank mine(std::atoi(argv[2]), size);
  NcclUniqueId id{};
  std::snprintf(id.internal, sizeof id.internal, "%s", argv[5]);
  doubles().set("nccl_remote_errors", 1);
  CHECK_EQ(mine.init(id), kNcclSuccess);
  std::vector<float> data = values<float>(mine.rank, 50'000);
  CHECK_EQ(mine.settled(nccl().all_reduce(data.data(), data.data(), data.size(), kNcclFloat32, kNcclSum, mine.comm, mine.stream)),
           kNcclSuccess);
  mine.finish();
  for (size_t i = 0; i < data.size(); ++i) CHECK_EQ(data[i], combined<float>(size, i, kNcclSum));
  char byte = 0;
  if (dies && mine.rank == 0) {
    close(kFinished);  // the others have it: should they fail, there is nothing to read
    for (int peer = 1; peer < size; ++peer) CHECK_EQ(read(kDone, &byte, 1), 1);
    std::_Exit(0);
  }
  if (dies) {
    CHECK_EQ(write(kFinished, &byte, 1), 1);
    nccl().all_reduce(data.data(), data.data(), 1, kNcclFloat32, kNcclSum, mine.comm, mine.stream);
    CHECK_EQ(mine.wait_for_error(), kNcclRemoteError);
    mine.abort();
  }
  return 0;
}

TEST(ranks_may_be_processes_and_one_that_dies_is_noticed) {
  doubles().reset();
  for (const char* dies : {"0", "1"}) {
    const NcclUniqueId id = unique_id();
    size_t children = 0;
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    CHECK(dup2(ends[0], kDone) == kDone && dup2(ends[1], kFinished) == kFinished);
    close(ends[0]), close(ends[1]);
    for (const char* rank : {"0", "1", "2"}) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);  // if this test fails
        execl("/proc/self/exe", "test_nccl_double", "--rank", rank, "3", dies, id.internal, nullptr);
        std::_Exit(127);
      }
      CHECK(child > 0);
      ++children;
    }
    close(kDone), close(kFinished);
    for (; children; --children) {  // in any order: the others may wait for one that failed
      int status = -1;
      CHECK(waitpid(-1, &status, 0) > 0);
      CHECK_EQ(status, 0);
    }
    CHECK(access((std::string("/dev/shm/") + id.internal).c_str(), F_OK) != 0);
  }
}

}  // namespace
}  // namespace ringreduce

int main(int argc, char** argv) {
  if (argc == 6 && std::string(argv[1]) == "--rank") return ringreduce::process_rank(argv);
  return check::run(argc, argv);
}
