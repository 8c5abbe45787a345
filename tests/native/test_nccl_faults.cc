// How the double of NCCL fails: as NCCL does, or where a test asks for it, and what it finds out
// about its callers. Its results: test_nccl_double.cc.
#include <array>
#include <atomic>

#include "common/clock.h"
#include "nccl_ranks.h"

namespace ringreduce {
namespace {

TEST(abort_ends_what_waits_for_a_peer) {
  doubles().reset();
  on_communicators(3, [](NcclRank& mine) {
    int sum = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    if (mine.rank == 0) return;  // does not take part, and leaves
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK(!mine.idle());
    CHECK_EQ(mine.state(), kNcclSuccess);  // a hang: NCCL does not know better
    mine.abort();
    mine.finish();
    CHECK_EQ(sum, 3);
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

TEST(abort_ends_the_making_and_the_first_operation) {
  doubles().reset();
  const NcclUniqueId id = unique_id();
  on_ranks(2, [&](NcclRank& mine) {
    if (mine.rank == 1) return;
    NcclConfig config;
    CHECK_EQ(nccl().comm_init_rank_config(&mine.comm, 2, id, 0, &config), kNcclInProgress);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK_EQ(mine.state(), kNcclInProgress);
    mine.abort();
  });
  on_communicators(2, [](NcclRank& mine) {
    if (mine.rank == 1) return;
    int sum = 1;
    CHECK_EQ(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream), kNcclInProgress);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    CHECK_EQ(mine.state(), kNcclInProgress);
    mine.abort();
    mine.finish();
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
}

TEST(an_aborted_peer_is_a_remote_error_where_that_is_wanted) {
  doubles().reset();
  doubles().set("nccl_remote_errors", 1);
  std::atomic<int> done{0};
  on_communicators(2, [&](NcclRank& mine) {
    int sum = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    for (++done; done < 2;) std::this_thread::yield();  // an abort would spoil what the other still does
    if (mine.rank == 1) return mine.abort();
    nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream);
    CHECK_EQ(mine.wait_for_error(), kNcclRemoteError);
    CHECK(std::string(nccl().get_last_error(mine.comm)).find("rank 1") == 0);
    mine.abort();
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
  doubles().reset();
}

// Rank 0 makes the first call, the others the second: all learn of it, with what both called.
TEST(ranks_that_disagree_are_found_out) {
  using Act = std::function<int(NcclRank&, void*)>;
  const auto reduce = [](size_t count, int dtype, int op) -> Act {
    return [=](NcclRank& mine, void* data) { return nccl().all_reduce(data, data, count, dtype, op, mine.comm, mine.stream); };
  };
  const auto broadcast = [](int root) -> Act {
    return [=](NcclRank& mine, void* data) { return nccl().broadcast(data, data, 1, kNcclInt32, root, mine.comm, mine.stream); };
  };
  const std::vector<std::pair<Act, Act>> disagreements = {
      {reduce(1, kNcclInt32, kNcclSum), reduce(2, kNcclInt32, kNcclSum)},
      {reduce(1, kNcclInt32, kNcclSum), reduce(1, kNcclFloat32, kNcclSum)},
      {reduce(1, kNcclInt32, kNcclSum), reduce(1, kNcclInt32, kNcclMax)},
      {broadcast(0), broadcast(1)},
      {broadcast(0), reduce(1, kNcclInt32, kNcclSum)},
  };
  for (const auto& disagreement : disagreements) {
    doubles().reset();
    on_communicators(3, [&](NcclRank& mine) {
      int32_t data[2] = {};
      const Act& act = mine.rank ? disagreement.second : disagreement.first;
      const int settled = mine.settled(act(mine, data));  // it may have run by then
      CHECK(settled == kNcclSuccess || settled == kNcclInvalidUsage);
      CHECK_EQ(mine.wait_for_error(), kNcclInvalidUsage);
      CHECK_EQ(std::string(nccl().get_last_error(mine.comm)).find("ranks disagree: "), 0u);
      for (const int64_t end = now_ns() + check::patience_ns(); doubles().misuses() < 4 && now_ns() < end;)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));  // who aborts at once may not be met by all
      CHECK(!mine.idle());
      mine.abort();
      mine.finish();
    });
    CHECK_EQ(doubles().misuses(), 4);  // 0 with 1 and 2, both with 0
  }
  doubles().reset();
}

TEST(a_send_that_meets_a_collective_is_found_out) {
  doubles().reset();
  on_communicators(2, [](NcclRank& mine) {
    int data = 1;
    CHECK_EQ(mine.settled(nccl().all_reduce(&data, &data, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    if (mine.rank == 0) {
      CHECK_EQ(mine.settled(nccl().send(&data, 1, kNcclInt32, 1, mine.comm, mine.stream)), kNcclSuccess);
      mine.finish();  // buffered
    } else {
      const int settled = mine.settled(nccl().all_reduce(&data, &data, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream));
      CHECK(settled == kNcclSuccess || settled == kNcclInvalidUsage);  // it may have run by then
      CHECK_EQ(mine.wait_for_error(), kNcclInvalidUsage);
    }
    mine.abort();
  });
  CHECK_EQ(doubles().misuses(), 1);
  doubles().reset();
}

TEST(misuse_of_communicators_is_found_out) {
  doubles().reset();
  on_communicators(1, [](NcclRank& mine) {
    int sum = 1;
    CHECK_EQ(cuda().set_device(1), kCudaSuccess);
    CHECK_EQ(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream), kNcclInvalidUsage);
    CHECK_EQ(cuda().set_device(0), kCudaSuccess);
    CHECK_EQ(nccl().all_reduce(&sum, &sum, 1, 10, kNcclSum, mine.comm, mine.stream), kNcclInvalidArgument);
    CHECK_EQ(nccl().broadcast(&sum, &sum, 1, kNcclInt32, 1, mine.comm, mine.stream), kNcclInvalidArgument);
    CHECK_EQ(nccl().group_end(), kNcclInvalidUsage);
    CHECK_EQ(doubles().misuses(), 4);
    NcclComm comm = mine.comm;
    mine.abort();
    CHECK_EQ(nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, comm, mine.stream), kNcclInvalidArgument);
    CHECK_EQ(nccl().comm_abort(comm), kNcclInvalidArgument);
    CHECK_EQ(doubles().misuses(), 6);
  });
  doubles().reset();
}

TEST(freed_memory_is_found_out) {
  doubles().reset();
  on_communicators(1, [](NcclRank& mine) {
    void* memory = nullptr;
    int sum = 1;
    CHECK_EQ(cuda().malloc_async(&memory, sizeof(int), mine.stream), kCudaSuccess);
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, memory, 2, kNcclUint8, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(doubles().misuses(), 0);
    CHECK_EQ(cuda().free_async(memory, mine.stream), kCudaSuccess);
#ifndef __SANITIZE_ADDRESS__  // which stops here
    CHECK_EQ(mine.settled(nccl().all_reduce(&sum, memory, 2, kNcclUint8, kNcclSum, mine.comm, mine.stream)), kNcclSuccess);
    mine.finish();
    CHECK_EQ(doubles().misuses(), 1);
#endif
  });
  doubles().reset();
}

TEST(faults_on_order) {
  doubles().reset();
  doubles().fail("ncclAllReduce", kNcclSystemError, 1, 1);  // the second of rank 1
  doubles().fail("nccl_async", kNcclInternalError, 2, 0);
  doubles().fail("nccl_hang", 0, 2, 1);
  on_communicators(2, [](NcclRank& mine) {
    int sum = 1;
    const auto call = [&] { return nccl().all_reduce(&sum, &sum, 1, kNcclInt32, kNcclSum, mine.comm, mine.stream); };
    CHECK_EQ(mine.settled(call()), kNcclSuccess);
    if (mine.rank == 1) CHECK_EQ(call(), kNcclSystemError);
    CHECK_EQ(mine.settled(call()), kNcclSuccess);
    mine.finish();
    CHECK_EQ(sum, 4);
    const int last = mine.settled(call());
    if (mine.rank == 0) CHECK_EQ(mine.wait_for_error(), kNcclInternalError);
    else CHECK_EQ(last, kNcclSuccess);
    CHECK(!mine.idle());
    mine.abort();
    mine.finish();
    CHECK_EQ(sum, 4);
  });
  CHECK_EQ(doubles().misuse_text(), std::string());
  doubles().reset();
}

TEST(two_ranks_on_one_gpu_are_refused_unless_they_may) {
  for (const auto& [version, allowed, size, expected] :
       {std::array{22703, 1, 2, int{kNcclInvalidUsage}}, std::array{23000, 0, 2, int{kNcclInvalidUsage}},
        std::array{23000, 1, 2, int{kNcclSuccess}}, std::array{23000, 1, 3, int{kNcclInvalidUsage}}}) {
    doubles().reset();
    doubles().set("same_pci", 1);
    doubles().set("nccl_version", version);
    doubles().set("nccl_multi_rank_gpu", allowed);
    const NcclUniqueId id = unique_id();
    on_ranks(size, [&, expected = expected](NcclRank& mine) {
      CHECK_EQ(mine.init(id), expected);
      if (expected == kNcclSuccess) return;
      CHECK_EQ(std::string(nccl().get_last_error(mine.comm)).find("Duplicate GPU detected"), 0u);
      mine.abort();
    });
    CHECK_EQ(doubles().misuse_text(), std::string());
  }
  doubles().reset();
}

TEST(a_library_that_is_too_old) {
  doubles().reset();
  doubles().set("nccl_version", 22605);
  std::shared_ptr<const GpuLibrary> library;
  CHECK_OK(GpuLibrary::load(doubles().cuda_path, {doubles().nccl_path}, &library));
  CHECK(library->nccl_problem.find("NCCL 2.26.5 in ") == 0);
  CHECK(library->nccl_problem.find("2.27 or newer is needed") != std::string::npos);
  doubles().reset();
}

}  // namespace
}  // namespace ringreduce

TEST_MAIN()
