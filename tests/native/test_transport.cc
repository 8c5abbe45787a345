// The transports of the tests: loopback and faults.
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "common/clock.h"
#include "fault_net.h"
#include "loopback_net.h"

using namespace ringreduce;

namespace {

const int64_t kDeadline = check::patience_ns();

void wait(Net* net, Request* request) {
  const int64_t deadline = now_ns() + kDeadline;
  for (bool done = false; !done;) {
    CHECK_OK(net->test(request, &done));
    CHECK(now_ns() < deadline);
    if (!done) std::this_thread::yield();
  }
  CHECK(!request->active());
}

bool is_done(Net* net, Request* request) {
  bool done = false;
  CHECK_OK(net->test(request, &done));
  return done;
}

// The state of a small world of two ranks, both driven by one thread.
struct Pair {
  explicit Pair(LoopbackOptions options = {}) : world(2, options), left(world.net(0)), right(world.net(1)) {}
  LoopbackWorld world;
  std::unique_ptr<Net> left, right;
};

}  // namespace

// ---- loopback ----

TEST(loopback_message_arrives_and_may_be_shorter_than_the_buffer) {
  Pair pair;
  const std::vector<int> sent = {1, 2, 3};
  std::vector<int> received(5, -1);
  Request send, receive;
  CHECK_OK(pair.right->irecv(0, 7, received.data(), 5 * sizeof(int), &receive));
  CHECK(!is_done(pair.right.get(), &receive));
  CHECK_OK(pair.left->isend(1, 7, sent.data(), 3 * sizeof(int), &send));
  wait(pair.right.get(), &receive);
  wait(pair.left.get(), &send);
  CHECK(received == (std::vector<int>{1, 2, 3, -1, -1}));
}

TEST(loopback_send_reads_its_buffer_until_the_message_is_received) {
  Pair pair;
  int sent = 1, received = 0;
  Request send, receive;
  CHECK_OK(pair.left->isend(1, 0, &sent, sizeof(sent), &send));
  CHECK(!is_done(pair.left.get(), &send));
  sent = 2;  // the caller's mistake, and the receiver must see it
  CHECK_OK(pair.right->irecv(0, 0, &received, sizeof(received), &receive));
  CHECK(!is_done(pair.left.get(), &send));  // only the receiver's own calls move the message
  wait(pair.right.get(), &receive);
  wait(pair.left.get(), &send);
  CHECK_EQ(received, 2);
}

TEST(loopback_matches_by_source_and_tag_in_order) {
  LoopbackWorld world(3);
  auto first = world.net(0), second = world.net(1), receiver = world.net(2);
  const std::vector<int> sent = {10, 11, 12, 13};
  std::vector<Request> sends(4), receives(4);
  CHECK_OK(first->isend(2, 0, &sent[0], sizeof(int), &sends[0]));
  CHECK_OK(first->isend(2, 0, &sent[1], sizeof(int), &sends[1]));
  CHECK_OK(first->isend(2, 1, &sent[2], sizeof(int), &sends[2]));
  CHECK_OK(second->isend(2, 0, &sent[3], sizeof(int), &sends[3]));
  std::vector<int> received(4);
  CHECK_OK(receiver->irecv(1, 0, &received[3], sizeof(int), &receives[3]));
  CHECK_OK(receiver->irecv(0, 1, &received[2], sizeof(int), &receives[2]));
  CHECK_OK(receiver->irecv(0, 0, &received[0], sizeof(int), &receives[0]));
  CHECK_OK(receiver->irecv(0, 0, &received[1], sizeof(int), &receives[1]));
  for (Request& receive : receives) wait(receiver.get(), &receive);
  CHECK(received == sent);
}

TEST(loopback_empty_message_and_message_to_oneself) {
  Pair pair;
  Request send, receive;
  CHECK_OK(pair.left->isend(0, 3, nullptr, 0, &send));
  CHECK_OK(pair.left->irecv(0, 3, nullptr, 0, &receive));
  wait(pair.left.get(), &receive);
  wait(pair.left.get(), &send);
}

TEST(loopback_oversize_message_is_an_error_at_the_receiver) {
  Pair pair;
  const char sent[8] = {};
  char received[4] = {};
  Request send, receive;
  CHECK_OK(pair.left->isend(1, 5, sent, 8, &send));
  CHECK_OK(pair.right->irecv(0, 5, received, 4, &receive));
  bool done = false;
  const Status status = pair.right->test(&receive, &done);
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("4 bytes for a message of 8 bytes from rank 0, tag 5") != std::string::npos);
  CHECK(done && !receive.active());
  wait(pair.left.get(), &send);
}

TEST(loopback_cancelled_receive_leaves_the_message_to_the_next) {
  Pair pair;
  int sent = 5, unused = 0, received = 0;
  Request send, given_up, receive;
  CHECK_OK(pair.right->irecv(0, 0, &unused, sizeof(int), &given_up));
  pair.right->cancel(&given_up);
  CHECK(!given_up.active());
  CHECK_OK(pair.left->isend(1, 0, &sent, sizeof(int), &send));
  CHECK_OK(pair.right->irecv(0, 0, &received, sizeof(int), &receive));
  wait(pair.right.get(), &receive);
  wait(pair.left.get(), &send);
  CHECK_EQ(received, 5);
  CHECK_EQ(unused, 0);
}

TEST(loopback_end_destroyed_with_transfers_in_flight_touches_no_buffer) {
  Pair pair;
  auto sent = std::make_unique<int>(1);
  auto received = std::make_unique<int>(0);
  Request send, receive, lost;
  CHECK_OK(pair.left->isend(1, 0, sent.get(), sizeof(int), &send));
  CHECK_OK(pair.right->irecv(0, 0, received.get(), sizeof(int), &receive));
  pair.left.reset();
  sent.reset();
  CHECK(!is_done(pair.right.get(), &receive));
  CHECK_OK(pair.right->isend(0, 0, received.get(), sizeof(int), &lost));
  CHECK(!is_done(pair.right.get(), &lost));
}

TEST(loopback_bad_addresses_and_stale_requests_are_refused) {
  Pair pair;
  Request request;
  CHECK(pair.left->isend(2, 0, nullptr, 0, &request).code() == Code::kInvalid);
  CHECK(pair.left->irecv(-1, 0, nullptr, 0, &request).code() == Code::kInvalid);
  CHECK(pair.left->isend(1, Net::kMaxTag + 1, nullptr, 0, &request).code() == Code::kInvalid);
  CHECK(!request.active());
  CHECK_OK(pair.left->irecv(0, 0, nullptr, 0, &request));
  Request copy = request;
  pair.left->cancel(&request);
  bool done = false;
  CHECK(pair.left->test(&copy, &done).code() == Code::kInvalid);
}

// How many calls of test() each of a row of messages takes.
static std::vector<int> delays(uint64_t seed, double probability) {
  Pair pair({seed, probability});
  std::vector<int> all;
  for (int round = 0; round < 40; ++round) {
    int sent = round, received = -1, tests = 0;
    Request send, receive;
    CHECK_OK(pair.left->isend(1, 0, &sent, sizeof(int), &send));
    CHECK_OK(pair.right->irecv(0, 0, &received, sizeof(int), &receive));
    while (!is_done(pair.right.get(), &receive)) ++tests;
    all.push_back(tests);
    while (!is_done(pair.left.get(), &send)) ++tests;
    all.push_back(tests);
    CHECK_EQ(received, round);
  }
  return all;
}

TEST(loopback_delays_depend_on_the_seed_alone) {
  CHECK(delays(1, 0.5) == delays(1, 0.5));
  CHECK(delays(1, 0.5) != delays(2, 0.5));
  const std::vector<int> none = delays(1, 0);
  CHECK_EQ(std::accumulate(none.begin(), none.end(), 0), 0);
}

// Every rank exchanges numbered messages with every other, eight in flight a channel, buffers
// used again as soon as a send is done.
static void all_to_all_rank(Net* net, int rank, int size) {
  constexpr int kInFlight = 8, kRounds = 20;
  const size_t lanes = static_cast<size_t>(size) * kInFlight;
  std::vector<int> out(lanes), in(lanes);
  std::vector<Request> sends(lanes), receives(lanes);
  for (int round = 0; round < kRounds; ++round) {
    for (int place = 0; place < kInFlight; ++place) {
      for (int peer = 0; peer < size; ++peer) {
        const size_t lane = static_cast<size_t>(place * size + peer);
        wait(net, &sends[lane]);
        out[lane] = (round * kInFlight + place) * size + rank;
        CHECK_OK(net->irecv(peer, 1, &in[lane], sizeof(int), &receives[lane]));
        CHECK_OK(net->isend(peer, 1, &out[lane], sizeof(int), &sends[lane]));
      }
    }
    for (size_t lane = 0; lane < lanes; ++lane) {
      wait(net, &receives[lane]);
      const int place = static_cast<int>(lane) / size, peer = static_cast<int>(lane) % size;
      CHECK_EQ(in[lane], (round * kInFlight + place) * size + peer);
    }
  }
  for (Request& send : sends) wait(net, &send);
}

TEST(loopback_many_threads_with_random_delays) {
  constexpr int kSize = 4;
  for (uint64_t seed = 0; seed < 3; ++seed) {
    LoopbackWorld world(kSize, {seed, 0.3});
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < kSize; ++rank) {
      ranks.emplace_back([net = world.net(rank), rank] { all_to_all_rank(net.get(), rank, kSize); });
    }
    for (std::thread& rank : ranks) rank.join();
  }
}

// ---- faults ----

static std::unique_ptr<FaultNet> faulty(Pair* pair, std::vector<Fault> faults) {
  return std::make_unique<FaultNet>(std::move(pair->right), std::move(faults));
}

TEST(fault_fails_the_nth_transfer_of_its_direction) {
  Pair pair;
  Fault fault;
  fault.direction = Fault::Direction::kReceive;
  fault.nth = 1;
  fault.action = Fault::Action::kFail;
  fault.status = Status(Code::kSystem, "the cable is cut");
  auto net = faulty(&pair, {fault});
  int sent = 3, received[2] = {};
  Request to_left, sends[1], receives[2];
  CHECK_OK(net->isend(0, 0, &sent, sizeof(int), &to_left));  // of the other direction
  CHECK_OK(net->irecv(0, 0, &received[0], sizeof(int), &receives[0]));
  CHECK_OK(net->irecv(0, 0, &received[1], sizeof(int), &receives[1]));
  bool done = false;
  const Status status = net->test(&receives[1], &done);
  CHECK(done && status.text() == "the cable is cut");
  CHECK_OK(pair.left->isend(1, 0, &sent, sizeof(int), &sends[0]));
  wait(net.get(), &receives[0]);
  CHECK_EQ(received[0], 3);
}

TEST(fault_delays_by_calls_of_test) {
  Pair pair;
  Fault fault;
  fault.action = Fault::Action::kDelay;
  fault.tests = 3;
  auto net = faulty(&pair, {fault});
  int sent = 4, received = 0;
  Request send, receive;
  CHECK_OK(pair.left->isend(1, 0, &sent, sizeof(int), &send));
  CHECK_OK(net->irecv(0, 0, &received, sizeof(int), &receive));
  for (int test = 0; test < 3; ++test) CHECK(!is_done(net.get(), &receive));
  CHECK(is_done(net.get(), &receive));
  CHECK_EQ(received, 4);
}

TEST(fault_refuses_and_drops) {
  Pair pair;
  Fault refuse, drop;
  refuse.action = Fault::Action::kRefuse;
  drop.nth = 1;
  drop.count = Fault::kForever;
  auto net = faulty(&pair, {refuse, drop});
  int sent = 1, received = 0;
  Request send, receive, at_left;
  CHECK(net->isend(0, 0, &sent, sizeof(int), &send).code() == Code::kSystem);
  CHECK(!send.active());
  CHECK_OK(net->isend(0, 0, &sent, sizeof(int), &send));
  CHECK_OK(net->irecv(0, 0, &received, sizeof(int), &receive));
  CHECK_OK(pair.left->irecv(1, 0, &received, sizeof(int), &at_left));
  for (int test = 0; test < 100; ++test) {
    CHECK(!is_done(net.get(), &send));
    CHECK(!is_done(net.get(), &receive));
    CHECK(!is_done(pair.left.get(), &at_left));
  }
  net->cancel(&receive);
  CHECK(!receive.active());
}

TEST_MAIN()
