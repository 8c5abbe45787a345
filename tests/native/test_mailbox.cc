// Messages from rank to rank: order, tags, any source, small and large ones mixed, within a host and between hosts,
// and what goes wrong with them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>

#include "mailbox/matching.h"
#include "world.h"

using namespace ringreduce;

namespace {

constexpr int kAny = MessageSpec::kAnySource;
using Numbers = std::vector<uint32_t>;

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// What `from` sends to `to` as its message `index`.
Numbers text(int from, int to, int index, size_t size) {
  Numbers numbers(size);
  for (size_t i = 0; i < size; ++i) numbers[i] = static_cast<uint32_t>(from * 1000003 + to * 10007 + index * 101 + i);
  return numbers;
}

MessageSpec spec(bool is_send, Numbers& numbers, int peer, int tag) {
  MessageSpec spec;
  spec.is_send = is_send;
  spec.peer = peer;
  spec.tag = tag;
  spec.dtype = DType::kInt32;
  spec.data = reinterpret_cast<char*>(numbers.data());
  spec.bytes = numbers.size() * sizeof(uint32_t);
  return spec;
}

MessageRef send(Engine& engine, Numbers& numbers, int to, int tag, int set = 0) {
  MessageRef message;
  CHECK_OK(engine.post(set, spec(true, numbers, to, tag), true, &message));
  return message;
}

MessageRef receive(Engine& engine, Numbers& numbers, int from, int tag, int set = 0) {
  MessageRef message;
  CHECK_OK(engine.post(set, spec(false, numbers, from, tag), true, &message));
  return message;
}

Status outcome(Engine& engine, const MessageRef& message, double limit_s = check::patience_s()) {
  for (bool done = false;;) {
    const Status status = engine.wait(*message, limit_s, 1, &done);
    if (status.code() == Code::kTimeout && limit_s >= 1) std::fprintf(stderr, "%s\n", engine.state().c_str());
    if (done || !status.is_ok()) return status;
  }
}

bool says(const Status& status, const std::string& what) {
  const bool found = status.text().find(what) != std::string::npos;
  if (!found) std::fprintf(stderr, "'%s' does not say '%s'\n", status.text().c_str(), what.c_str());
  return found;
}

WorldOptions options(std::vector<int> host_of, double delays = 0.2) {
  WorldOptions options;
  options.host_of = std::move(host_of);
  options.net = {11, delays};
  return options;
}

const std::vector<std::vector<int>> kLayouts = {{0, 0}, {0, 1}, {0, 0, 0}, {0, 0, 1}, {0, 1, 1, 0}, {0, 1, 2}};
// Elements of 4 bytes: nothing, a few, the largest small message, the smallest large one, a ring, several rings.
const std::vector<size_t> kSizes = {0, 1, 7, 1000, 1024, 1025, 5000, 40'000, 300'000};

}  // namespace

TEST(a_receive_gets_what_came_first) {
  Matching matching;
  const auto arrival = [](int source, int tag, uint64_t number) {
    Packet packet;
    packet.tag = tag;
    packet.number = number;
    return Arrival{source, packet};
  };
  for (const auto& [source, tag, number] : {std::tuple{2, 0, 1}, {1, 0, 2}, {2, 0, 3}, {2, 5, 4}}) matching.keep(arrival(source, tag, number));
  Message any;
  Arrival got;
  CHECK(matching.tags_from(2) == (std::vector<int>{0, 5}) && matching.tags_from(1) == std::vector<int>{0});
  CHECK(matching.take(any, &got) && got.packet.number == 1);
  CHECK(matching.take(any, &got) && got.packet.number == 2);
  Message from_1;
  from_1.at = 1;
  CHECK(!matching.take(from_1, &got));
  CHECK(matching.take(any, &got) && got.packet.number == 3);
  CHECK(!matching.take(any, &got));
}

TEST(a_message_goes_to_the_receive_that_was_posted_first) {
  Matching matching;
  std::vector<MessageRef> receives;
  for (int source : {kAny, 3, kAny, 3}) {
    receives.push_back(std::make_shared<Message>());
    receives.back()->at = source;
    receives.back()->number = receives.size();
    matching.post(receives.back());
  }
  CHECK(matching.take(3, 1) == nullptr);
  CHECK(matching.take(3, 0) == receives[0] && matching.take(3, 0) == receives[1]);
  matching.withdraw(*receives[2]);
  CHECK(matching.take(4, 0) == nullptr && matching.take(3, 0) == receives[3] && matching.take(3, 0) == nullptr);
}

// Everybody to everybody and to itself; the receives are posted in another order than the messages are sent.
TEST(all_sizes_between_all_ranks) {
  for (const auto& layout : kLayouts) {
    World world(options(layout));
    const int ranks = world.size(), sizes = static_cast<int>(kSizes.size());
    world.run([&](int rank, Engine& engine) {
      std::vector<Numbers> out, in(ranks * sizes);
      std::vector<MessageRef> messages;
      out.reserve(ranks * sizes);
      for (int to = 0; to < ranks; ++to)
        for (int i = 0; i < sizes; ++i) {
          out.push_back(text(rank, to, i, kSizes[i]));
          messages.push_back(send(engine, out.back(), to, i));
        }
      for (int i = sizes - 1; i >= 0; --i)
        for (int from = 0; from < ranks; ++from) {
          in[from * sizes + i].resize(kSizes[i]);
          messages.push_back(receive(engine, in[from * sizes + i], from, i));
        }
      for (const MessageRef& message : messages) CHECK_OK(outcome(engine, message));
      for (int from = 0; from < ranks; ++from)
        for (int i = 0; i < sizes; ++i) CHECK(in[from * sizes + i] == text(from, rank, i, kSizes[i]));
      CHECK(engine.set_idle(0));
    });
  }
}

// Many of one tag, of random sizes: each rank posts its receives now before, now after what is sent to it.
TEST(messages_of_one_tag_come_in_order) {
  for (const auto& layout : kLayouts) {
    World world(options(layout, 0.4));
    world.run([&](int rank, Engine& engine) {
      constexpr int kMany = 300;
      const int to = (rank + 1) % world.size(), from = (rank + world.size() - 1) % world.size();
      const auto size_of = [](int source, int i) { return static_cast<size_t>(std::mt19937(source * kMany + i)() % (i % 7 ? 300 : 5000)); };
      std::vector<Numbers> out(kMany), in(kMany);
      std::vector<MessageRef> messages;
      const auto receive_one = [&](int i) {
        in[i].resize(size_of(from, i));
        messages.push_back(receive(engine, in[i], from, 4));
      };
      for (int i = 0; i < kMany; ++i) {
        if (rank % 2) receive_one(i);
        out[i] = text(rank, to, i, size_of(rank, i));
        messages.push_back(send(engine, out[i], to, 4));
      }
      for (int i = 0; rank % 2 == 0 && i < kMany; ++i) receive_one(i);
      for (const MessageRef& message : messages) CHECK_OK(outcome(engine, message));
      for (int i = 0; i < kMany; ++i) CHECK(in[i] == text(from, rank, i, size_of(from, i)));
    });
  }
}

// Rank 0 serves whoever comes, from this host and others.
TEST(any_source) {
  for (const auto& layout : kLayouts) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      constexpr int kRounds = 40;
      std::vector<int> served(world.size(), 0);
      Numbers answer(1), question(1500);
      for (int i = 0; rank == 0 && i < kRounds * (world.size() - 1); ++i) {
        const size_t size = question.size();
        const MessageRef asked = receive(engine, question, kAny, 1);
        CHECK_OK(outcome(engine, asked));
        CHECK(question == text(asked->peer, 0, served[asked->peer], size));
        answer[0] = static_cast<uint32_t>(++served[asked->peer]);
        CHECK_OK(outcome(engine, send(engine, answer, asked->peer, 2)));
      }
      for (int i = 0; rank && i < kRounds; ++i) {
        question = text(rank, 0, i, 1500);
        CHECK_OK(outcome(engine, send(engine, question, 0, 1)));
        CHECK_OK(outcome(engine, receive(engine, answer, 0, 2)));
        CHECK_EQ(answer[0], static_cast<uint32_t>(i + 1));
      }
    });
  }
}

// Small messages are done when they are sent, as many as there is room for; large ones are not.
TEST(small_messages_need_no_receiver_and_large_ones_do) {
  World world(options({0, 0}));
  world.run([&](int rank, Engine& engine) {
    Numbers small = {1, 2, 3}, large(100'000, 7), in(3), much(100'000);
    if (rank == 0) {
      for (int i = 0; i < 20; ++i) CHECK(send(engine, small, 1, 0)->is_done());
      const MessageRef waits = send(engine, large, 1, 1);
      bool done = true;
      CHECK(engine.wait(*waits, 0.05, 1, &done).code() == Code::kTimeout && !done);
      world.meet();
      CHECK_OK(outcome(engine, waits));
      return;
    }
    world.meet();
    for (int i = 0; i < 20; ++i) CHECK_OK(outcome(engine, receive(engine, in, 0, 0)));
    CHECK(in == small);
    CHECK_OK(outcome(engine, receive(engine, much, 0, 1)));
    CHECK(much == large);
  });
}

// Collectives in flight on one rank, messages before and after them on the other.
TEST(messages_do_not_stand_behind_collectives) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      std::vector<float> in(50'000, 1), out(in);
      Numbers word = {42}, much = text(0, 1, 0, 50'000), heard(1), heard_much(50'000);
      OpRef op;
      if (rank == 0) {  // the sum is in flight until rank 1 has had the messages
        CHECK_OK(engine.submit(0, allreduce_of("sum", in, &out, DType::kFloat32), true, &op));
        const MessageRef first = send(engine, word, 1, 0), second = send(engine, much, 1, 0);
        CHECK_OK(outcome(engine, first));
        CHECK_OK(outcome(engine, second));
      } else {
        CHECK_OK(outcome(engine, receive(engine, heard, 0, 0)));
        CHECK_OK(outcome(engine, receive(engine, heard_much, 0, 0)));
        CHECK(heard == word && heard_much == much);
        CHECK_OK(engine.submit(0, allreduce_of("sum", in, &out, DType::kFloat32), true, &op));
      }
      CHECK_OK(wait_for(engine, op));
      CHECK_EQ(out[49'999], 2.0f);
    });
  }
}

TEST(a_receive_of_another_size_or_dtype_is_an_error_on_both_sides) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}})
    for (size_t size : {5, 5000})
      for (bool early : {false, true}) {
        World world(options(layout));
        world.run([&](int rank, Engine& engine) {
          Numbers sent(size, 1), in(3, 9), good(1);
          if (rank == 0) {
            if (early) world.meet();
            const MessageRef bad = send(engine, sent, 1, 6);
            if (!early) world.meet();
            const Status status = outcome(engine, bad);
            CHECK_EQ(status.is_ok(), size == 5);
            if (size != 5) CHECK(status.code() == Code::kMismatch && says(status, "send to rank 1 (tag 6)") && says(status, "3 elements of int32"));
            good = {17};
            CHECK_OK(outcome(engine, send(engine, good, 1, 6)));
            return;
          }
          if (!early) world.meet(), sleep_ms(5);
          const MessageRef bad = receive(engine, in, 0, 6);
          if (early) world.meet();
          const Status status = outcome(engine, bad);
          CHECK(status.code() == Code::kMismatch);
          CHECK(says(status, "recv from rank 0 (tag 6): the tensor has 3 elements of int32, but rank 0 has sent " + std::to_string(size)));
          CHECK(in == Numbers(3, 9));
          CHECK_OK(outcome(engine, receive(engine, good, 0, 6)));  // all goes on
          CHECK(good == Numbers{17});
        });
      }
}

TEST(bad_arguments) {
  World world(options({0, 0}));
  world.run([&](int, Engine& engine) {
    Numbers numbers(1);
    MessageRef message;
    CHECK(says(engine.post(0, spec(true, numbers, 2, 0), true, &message), "dest is 2, which is not a global rank of the process set (ranks 0, 1)"));
    CHECK(says(engine.post(0, spec(true, numbers, kAny, 0), true, &message), "dest is -1"));
    CHECK(says(engine.post(0, spec(false, numbers, 5, 0), true, &message), "source is 5"));
    CHECK(says(engine.post(0, spec(false, numbers, 1, -3), true, &message), "tag is -3"));
    CHECK(engine.post(7, spec(true, numbers, 1, 0), true, &message).code() == Code::kInvalid);
    CHECK(engine.set_idle(0));
  });
}

// The report of a hang names what is missing, and what else is there.
TEST(a_message_that_does_not_come_is_named) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      Numbers small(2, 5), large(9000, 6), in(2), in_large(9000);
      if (rank == 0) {
        const MessageRef announced = send(engine, large, 1, 8), early = send(engine, small, 1, 2);
        world.meet();
        world.meet();
        CHECK(says(outcome(engine, announced, 0.05), "rank 1 has posted no recv for it with tag 8"));
        CHECK(engine.state().find("send to rank 1 (tag 8)") != std::string::npos);
        CHECK(!engine.set_idle(0));
        world.meet();
        CHECK_OK(outcome(engine, early));
        CHECK_OK(outcome(engine, announced));
        CHECK_OK(outcome(engine, send(engine, small, 1, 3)));
        return;
      }
      world.meet();
      const MessageRef missing = receive(engine, in, 0, 3), any = receive(engine, in, kAny, 4);
      const std::string others = "rank 0 has sent nothing with tag 3, but messages with tags 2, 8, which wait for a recv";
      Status status;
      for (int i = 0; i < 400 && status.text().find(others) == std::string::npos; ++i) status = outcome(engine, missing, 0.05);
      CHECK(status.code() == Code::kTimeout && says(status, "recv from rank 0 (tag 3) has not completed in "));
      CHECK(says(status, others));
      CHECK(says(outcome(engine, any, 0.05), "no rank has sent anything with tag 4"));
      world.meet();
      world.meet();
      CHECK_OK(outcome(engine, receive(engine, in_large, 0, 8)));
      CHECK_OK(outcome(engine, receive(engine, in, 0, 2)));
      CHECK_OK(outcome(engine, missing));  // again, with a new limit
      CHECK_OK(outcome(engine, send(engine, small, 1, 4)));  // to itself
      CHECK_OK(outcome(engine, any));
      CHECK_EQ(any->peer, 1);
    });
  }
}

// Which of them is meant is said by the set: the same ranks, tags and hosts.
TEST(process_sets_have_mailboxes_of_their_own) {
  for (const auto& layout : {std::vector<int>{0, 0, 0}, std::vector<int>{0, 1, 1}}) {
    World world(options(layout));
    const std::vector<int> members = {0, 2};
    world.run([&](int rank, Engine& engine) {
      if (rank == 1) return world.meet(), world.meet();
      CHECK_OK(engine.add_set(1, members, world.set_segment("set", rank, members)));
      world.meet();
      Numbers a = {1}, b = {2}, in(1);
      if (rank == 0) {
        CHECK_OK(outcome(engine, send(engine, a, 2, 0)));
        CHECK_OK(outcome(engine, send(engine, b, 2, 0, 1)));
        CHECK_EQ(engine.message_counts(1).sent.at(2), uint64_t{1});
      } else {
        CHECK_OK(outcome(engine, receive(engine, in, 0, 0, 1)));
        CHECK(in == b);
        CHECK_OK(outcome(engine, receive(engine, in, 0, 0)));
        CHECK(in == a);
        CHECK_EQ(engine.message_counts(1).received.at(0), uint64_t{1});
        (void)receive(engine, in, 0, 9, 1);
        CHECK(says(engine.remove_set(1), "in flight"));
        CHECK_OK(outcome(engine, send(engine, a, 2, 9, 1)));
        CHECK_OK(outcome(engine, receive(engine, in, 2, 9, 1)));
      }
      world.meet();
    });
  }
}

// What was sent before the shutdown arrives; what was not is an error that names the rank.
TEST(a_rank_that_shuts_down) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}, std::vector<int>{0, 1, 1}}) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      const int last = world.size() - 1;
      Numbers small(4, 3), large(9000, 4), in(4), in_large(9000);
      if (rank == last) {
        CHECK_OK(outcome(engine, send(engine, small, 0, 0)));
        return;  // and shuts down
      }
      if (rank) return sleep_ms(1000);  // the leader of the other host: it brings the news as it leaves, later
      const MessageRef sent = send(engine, large, last, 0), expected = receive(engine, in_large, last, 1);
      CHECK_OK(outcome(engine, receive(engine, in, last, 0)));
      CHECK(in == small);
      for (const MessageRef& message : {sent, expected}) {
        const Status status = outcome(engine, message);
        CHECK(status.code() == Code::kPeerLost && says(status, std::to_string(last)) && says(status, "shut down"));
      }
      const MessageRef any = receive(engine, in, kAny, 7);
      CHECK(says(outcome(engine, any), "recv from any rank (tag 7) cannot complete"));
    });
  }
}

// However many messages stand before the one that is asked for.
TEST(what_was_sent_before_a_shutdown_arrives) {
  for (int asked : {1, 300}) {  // one with the last tag, or all with the first
    World world(options({0, 0}));
    world.run([&](int rank, Engine& engine) {
      Numbers word = {1}, last = {2}, in(1);
      if (rank) {
        for (int i = 0; i <= 500; ++i) CHECK(send(engine, i < 500 ? word : last, 0, i < 500 ? 1 : 7)->is_done());
        engine.close(1);
      }
      world.meet();
      if (rank) return;
      std::vector<MessageRef> receives;
      for (int i = 0; i < asked; ++i) receives.push_back(receive(engine, in, 1, asked == 1 ? 7 : 1));
      for (const MessageRef& message : receives) CHECK_OK(outcome(engine, message));
      CHECK(in == (asked == 1 ? last : word));
      CHECK(outcome(engine, receive(engine, in, 1, 8)).code() == Code::kPeerLost);
    });
  }
}

// Its receiver has heard of it, and asks for it after its sender has left.
TEST(a_large_message_whose_sender_does_not_wait) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      Numbers large = text(1, 0, 0, 9000), in(9000), word(1);
      if (rank) {
        const MessageRef message = send(engine, large, 0, 5);
        CHECK_OK(outcome(engine, send(engine, word, 0, 6)));
        world.meet();
        engine.close(2);
        CHECK(message->status.code() == Code::kShutdown);
        world.meet();
        return;
      }
      const MessageRef listens = receive(engine, in, 1, 9);
      CHECK_OK(outcome(engine, receive(engine, word, 1, 6)));
      world.meet();
      world.meet();
      CHECK(outcome(engine, listens).code() == Code::kPeerLost);
      const int64_t start = now_ns();
      const Status status = outcome(engine, receive(engine, in, 1, 5));
      CHECK(status.code() == Code::kPeerLost && says(status, "recv from rank 1 (tag 5) cannot complete: rank 1 has shut down"));
      CHECK(now_ns() - start < check::patience_ns() / 3);
    });
  }
}

// That its receiver has accepted it, its sender reads as it shuts down; or they cross, and the receiver is told.
TEST(a_large_message_that_is_accepted_as_its_sender_leaves) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    World world(options(layout));
    world.run([&](int rank, Engine& engine) {
      Numbers large = text(1, 0, 0, 50'000), in(50'000);
      MessageRef message;
      sleep_ms(50);  // the engine's thread sleeps, and nobody wakes it for the message
      if (rank) CHECK_OK(engine.post(0, spec(true, large, 0, 5), false, &message));
      world.meet();
      if (!rank) message = receive(engine, in, 1, 5);
      world.meet();
      if (rank) return engine.close(10);
      const Status status = outcome(engine, message);
      if (layout[1] == 0) CHECK_OK(status);
      if (status.is_ok()) CHECK(in == text(1, 0, 0, 50'000));
      else CHECK(status.code() == Code::kPeerLost && says(status, "rank 1 has shut down"));
    });
  }
}

// Its sender has no time to finish it, as a rule; where the threads that drive were quicker, it is whole.
TEST(a_large_message_that_stops_in_the_middle) {
  World world(options({0, 0}));
  world.run([&](int rank, Engine& engine) {
    Numbers large(10'000'000, 1), in(10'000'000);
    MessageRef message;
    if (rank) message = send(engine, large, 0, 5);
    world.meet();
    if (!rank) CHECK_OK(engine.post(0, spec(false, in, 1, 5), false, &message));
    world.meet();
    if (rank) engine.close(0);
    world.meet();
    if (rank) return;
    const Status status = outcome(engine, message, 40);
    if (status.is_ok()) CHECK(in == large);
    else CHECK(says(status, "recv from rank 1 (tag 5) cannot complete: rank 1 has shut down"));
  });
}

// Whoever waits no longer takes no message from those who do.
TEST(a_receive_that_is_taken_back) {
  for (int source : {1, kAny}) {
    World world(options({0, 0}));
    world.run([&](int rank, Engine& engine) {
      Numbers word = {5}, in(1), other(1);
      const MessageRef old = rank ? nullptr : receive(engine, other, source, 2);
      if (old) CHECK(engine.take_back(old) && old->is_done() && !engine.take_back(old) && engine.set_idle(0));
      world.meet();
      if (rank) CHECK_OK(outcome(engine, send(engine, word, 0, 2)));
      if (rank) return;
      CHECK_OK(outcome(engine, receive(engine, in, source, 2)));
      CHECK(in == word && other == Numbers(1));
    });
  }
}

// The receiver of what does not fit has its error, and no message in flight; its sender is told as soon as there is room.
TEST(a_refusal_that_finds_no_room) {
  World world(options({0, 0}));
  world.run([&](int rank, Engine& engine) {
    Numbers large(9000, 1), small(1000, 2), bad(1), in(1000);
    constexpr int kMany = 100;  // a ring has room for fewer
    if (rank) {
      MessageRef message;
      CHECK_OK(engine.post(0, spec(true, large, 0, 5), false, &message));
      world.meet();
      world.meet();
      for (int i = 0; i < kMany; ++i) CHECK_OK(outcome(engine, receive(engine, in, 0, 1)));
      CHECK(outcome(engine, message).code() == Code::kMismatch);
      return;
    }
    world.meet();
    std::vector<MessageRef> sends(kMany);
    for (MessageRef& message : sends) CHECK_OK(engine.post(0, spec(true, small, 1, 1), false, &message));
    MessageRef message;  // its answer stands behind them, unless the receiver has taken them out meanwhile
    CHECK_OK(engine.post(0, spec(false, bad, 1, 5), false, &message));
    CHECK(outcome(engine, message).code() == Code::kMismatch);
    world.meet();
    for (const MessageRef& one : sends) CHECK_OK(outcome(engine, one));
  });
}

// The engine has failed while the net moves a message: what the message lies in lives on.
TEST(memory_that_the_net_may_still_touch) {
  WorldOptions with = options({0, 1}, 0);
  Fault fault;
  fault.direction = Fault::Direction::kSend;
  fault.count = Fault::kForever;
  fault.action = Fault::Action::kRefuse;
  with.faults[0] = {fault};
  with.timeout_s = 0.5;
  World world(with);
  world.run([&](int rank, Engine& engine) {
    Numbers numbers(5000, 1);
    const MessageRef message = rank ? send(engine, numbers, 0, 0) : nullptr;
    if (rank) return world.meet();
    MessageRef got;
    Status status = engine.post(0, spec(false, numbers, 1, 0), false, &got);
    if (status.is_ok()) status = outcome(engine, got);
    CHECK(says(status, "injected fault") && got && got->transfer.active());
    auto memory = std::make_shared<int>(1);
    const std::weak_ptr<int> lives = memory;
    engine.keep(got, std::move(memory));
    got.reset();
    CHECK(!lives.expired());
    world.meet();
  });
}

// The engine of a rank that has lost a transfer fails; its messages say why.
TEST(faults_of_the_net) {
  for (Fault::Action action : {Fault::Action::kFail, Fault::Action::kRefuse})
    for (int64_t nth = 0; nth < 3; ++nth)
      for (Fault::Direction direction : {Fault::Direction::kSend, Fault::Direction::kReceive}) {
        WorldOptions with = options({0, 1}, 0);
        Fault fault;
        fault.direction = direction;
        fault.nth = nth;
        fault.count = Fault::kForever;
        fault.action = action;
        with.faults[0] = {fault};
        with.timeout_s = 0.5;
        World world(with);
        std::atomic<int> failed{0};
        world.run([&](int rank, Engine& engine) {
          Numbers out(5000, 1), in(5000);
          MessageRef message;
          Status status;
          for (int i = 0; i < 4 && status.is_ok(); ++i) {
            status = engine.post(0, spec(rank == 0, rank ? in : out, 1 - rank, 0), true, &message);
            if (status.is_ok()) status = outcome(engine, message, 0.5);
            if (status.is_ok()) status = engine.post(0, spec(rank != 0, rank ? in : out, 1 - rank, 0), true, &message);
            if (status.is_ok()) status = outcome(engine, message, 0.5);
          }
          CHECK(!status.is_ok());
          if (rank == 0) CHECK(says(status, "injected fault"));
          ++failed;
          while (failed < 2) sleep_ms(1);
        });
      }
}

// A peer whose transfers never end looks dead: the wait ends at its limit.
TEST(a_silent_peer) {
  WorldOptions with = options({0, 1}, 0);
  Fault fault;
  fault.count = Fault::kForever;
  with.faults[1] = {fault};
  with.timeout_s = 0.5;
  World world(with);
  world.run([&](int rank, Engine& engine) {
    Numbers numbers(5000, 1);
    const MessageRef message = rank ? receive(engine, numbers, 0, 0) : send(engine, numbers, 1, 0);
    const Status status = outcome(engine, message, 0.5);
    CHECK(status.code() == Code::kTimeout && says(status, rank ? "rank 0 has sent nothing" : "rank 1 has posted no recv"));
    world.meet();
  });
}

// Memory that somebody has written over is an error, not a crash.
TEST(a_damaged_ring) {
  World world(options({0, 0}));
  std::atomic<bool> done{false};
  world.run([&](int rank, Engine& engine) {
    Numbers numbers(4, 1);
    if (rank == 0) {
      CHECK_OK(outcome(engine, send(engine, numbers, 1, 0)));
      const int locals = 2;
      const size_t rings = ProcessSet::segment_bytes(locals, 4096) - MailMemory::rings_bytes(locals);
      char* ring = world.segment("world", 0, 0)->data() + rings + MailMemory::ring_bytes(locals) * 2;  // [to 1][from 0]
      std::memset(ring, 0xff, sizeof(Packet));
      world.meet();
      while (!done) sleep_ms(1);
      return;
    }
    world.meet();
    MessageRef message;
    CHECK(says(engine.post(0, spec(false, numbers, 0, 0), true, &message), "the mailbox for rank 0 in the host's memory is damaged"));
    done = true;
  });
}

TEST_MAIN()
