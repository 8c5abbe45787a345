// Memory runs out at every allocation in turn, in the caller's thread and in the engine's: an exception or
// an error where it happens, an engine that works or says why it does not, and never the end of the process.
#include <atomic>
#include <functional>
#include <new>
#include <utility>

#include "common/clock.h"
#include "agreement/departures.h"
#include "agreement/op_table.h"
#include "world.h"

using namespace ringreduce;

namespace {

constexpr int64_t kEnough = -1;
thread_local bool is_caller = false;
thread_local int64_t callers_left = kEnough;            // allocations until one fails
thread_local int64_t callers_more = 0;                  // and so many after it
std::atomic<int64_t> engines_left{kEnough};  // of all threads that are not callers

bool runs_out() {
  if (is_caller && callers_left == 0 && callers_more > 0) return --callers_more, true;
  if (is_caller) return callers_left >= 0 && callers_left-- == 0;
  return engines_left.load() >= 0 && engines_left.fetch_sub(1) == 0;
}

}  // namespace

void* operator new(size_t bytes) {
  if (runs_out()) throw std::bad_alloc();
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  if (runs_out()) throw std::bad_alloc();
  const auto unit = static_cast<size_t>(alignment);
  if (void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

// What a program does, with a single rank: nobody else's memory is in question.
class Program {
 public:
  Program() {
    WorldOptions options;
    options.host_of = {0};
    world_ = std::make_unique<World>(options);
    engine = world_->engine(0);
    arena_ = world_->segment("arena", 0, ArenaPlan::segment_bytes(1, kBuckets));
    CHECK_OK(engine->add_plan(0, kBuckets, kOpSum, 1, 2, arena_, 130, &plan_));
  }

  Status allreduce(const std::string& name, bool background) {
    Submission s = allreduce_of(name, in_, &out_, DType::kFloat32);
    s.prescale = 2;
    OpRef op;
    RR_TRY(engine->submit(0, s, background, &op));
    RR_TRY(background ? look(op) : wait_for(*engine, op));
    CHECK_EQ(out_.back(), 6.0f);
    return Status::ok();
  }
  Status allgather() {
    Submission s = allreduce_of("gathered", in_, &out_, DType::kFloat32);
    s.kind = find_kind("allgather");
    s.shape = {};
    OpRef op;
    RR_TRY(engine->submit(0, s, false, &op));
    return wait_for(*engine, op);
  }
  Status small() {
    float value = 3;
    const int64_t shape[] = {1};
    PlainCall plain;
    plain.kind = find_kind("allreduce");
    plain.dtype = DType::kFloat32;
    plain.in = plain.out = reinterpret_cast<char*>(&value);
    plain.bytes = plain.room = sizeof value;
    plain.shape = shape;
    plain.dims = 1;
    OpRef op;
    bool here = false;
    RR_TRY(engine->call(0, plain, &here, &op));
    return op ? wait_for(*engine, op) : Status::ok();
  }
  Status bucket() {
    RR_TRY(engine->launch(*plan_, 0));
    bool done = false;
    RR_TRY(engine->wait_bucket(*plan_, 0, 5, &done));
    CHECK(done);
    return Status::ok();
  }
  Status message(size_t size) {  // to itself
    std::vector<char> sent(size, 1), got(size);
    MessageSpec send, receive;
    send.is_send = true;
    send.peer = receive.peer = 0;
    send.data = sent.data();
    receive.data = got.data();
    send.bytes = receive.bytes = size;
    MessageRef out, in;
    RR_TRY(engine->post(0, receive, false, &in));
    try {
      RR_TRY(engine->post(0, send, false, &out));
    } catch (const std::bad_alloc&) {
      if (!in->is_done()) CHECK(engine->take_back(in));  // or the next message of this tag is lost in it
      throw;
    }
    for (const MessageRef& one : {out, in})
      for (bool done = false; !done;) RR_TRY(engine->wait(*one, 60, 1, &done));
    CHECK_EQ(got.back(), 1);
    return Status::ok();
  }
  Status leave() { return engine->leave(plan_->id(), "a reason that is longer than what a string holds without an allocation"); }
  Status all() {
    RR_TRY(allreduce("first", false));
    RR_TRY(small());
    RR_TRY(allgather());
    RR_TRY(bucket());
    RR_TRY(message(100));
    RR_TRY(message(10'000));
    return allreduce("second", false);
  }

  std::unique_ptr<Engine> engine;

 private:
  static Status look(const OpRef& op) {
    const int64_t start = now_ns();
    while (!op->is_done()) {
      CHECK(now_ns() - start < check::patience_ns());
      std::this_thread::yield();
    }
    return op->status;
  }

  const std::vector<BucketSpec> kBuckets = {{1000, DType::kFloat32}};
  std::unique_ptr<World> world_;
  std::shared_ptr<Segment> arena_;
  std::shared_ptr<ArenaPlan> plan_;
  std::vector<float> in_ = std::vector<float>(30'000, 3), out_ = in_;
};

// Either nothing has happened to the engine, or it says what has.
void check_state(Program& program) {
  const Status status = program.all();
  if (status.is_ok()) return;
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("memory ran out on rank 0") != std::string::npos);
}

}  // namespace

TEST(when_a_result_is_dropped) {
  is_caller = true;
  (void)settings();  // read at first use
  Output output;
  output.counts = {1 << 20};
  CHECK_OK(output.allocate());
  callers_left = 0;
  output.data.reset();
  CHECK(callers_left < 0);
  callers_left = kEnough;
}

TEST(in_the_callers_thread) {
  is_caller = true;
  bool ran_out = true;
  int thrown = 0, failed = 0;
  for (int64_t n = 0; ran_out; ++n) {
    Program program;
    callers_left = n;
    try {
      const Status status = program.all();
      failed += !status.is_ok();
    } catch (const std::bad_alloc&) {
      ++thrown;
    }
    ran_out = callers_left < 0;
    callers_left = kEnough;
    check_state(program);
    program.engine->close(1);
  }
  CHECK(thrown > 10);
  CHECK(failed > 10);
}

// Then the engine fails, and there is no memory either to say of a message what that means for it.
TEST(with_a_message_in_flight) {
  is_caller = true;
  bool ran_out = true;
  for (int64_t n = 0; ran_out; ++n) {
    Program program;
    char got = 0;
    MessageSpec spec;
    spec.tag = 9;
    spec.data = &got;
    spec.bytes = 1;
    MessageRef waits;
    CHECK_OK(program.engine->post(0, spec, false, &waits));
    callers_more = 1 + n % 7;  // some of them at the title
    callers_left = n / 7;
    try {
      (void)program.all();
    } catch (const std::bad_alloc&) {
    }
    ran_out = callers_left <= 0;
    callers_left = kEnough;
    callers_more = 0;
    check_state(program);
    program.engine->close(1);
    CHECK(waits->is_done() && !waits->status.is_ok());
  }
}

TEST(in_the_engines_thread) {
  is_caller = true;
  bool ran_out = true;
  int failed = 0;
  for (int64_t n = 0; ran_out; ++n) {
    Program program;
    engines_left = n;
    failed += !program.allreduce("first", true).is_ok();
    ran_out = engines_left.exchange(kEnough) < 0;
    check_state(program);
    program.engine->close(1);
  }
  CHECK(failed > 3);
}

TEST(when_a_plan_is_left) {
  is_caller = true;
  bool ran_out = true;
  for (int64_t n = 0; ran_out; ++n) {
    Program program;
    CHECK_OK(program.all());
    bool is_left = false;
    callers_left = n;
    try {
      is_left = program.leave().is_ok();
    } catch (const std::bad_alloc&) {
    }
    ran_out = std::exchange(callers_left, kEnough) < 0;
    const Status launched = program.bucket(), other = program.allreduce("other", false);
    const Code expected = !other.is_ok() ? Code::kSystem : is_left ? Code::kPlanLeft : Code::kOk;  // or it has not begun
    CHECK(launched.code() == expected);
    CHECK(other.is_ok() || other.code() == Code::kSystem);
    program.engine->close(1);
  }
}

// Whoever runs out of memory while it looks at what the ranks of a host share must not keep the others out of it.
TEST(locks_in_shared_memory_are_let_go) {
  is_caller = true;
  const size_t board_at = round_up(OpTable::bytes(), kLine), data_at = round_up(board_at + sizeof(DepartureBoard), kLine);
  const std::shared_ptr<Segment> memory = Segment::in_process(data_at + OpTable::data_bytes(2));
  auto* board = reinterpret_cast<DepartureBoard*>(memory->data() + board_at);
  Bell bell;
  Departures mine(board, memory, {0, 1}, 0, &bell), others(board, memory, {0, 1}, 1, &bell);
  OpTable my_table(memory.get(), 0, data_at, 2, 0, &bell), other_table(memory.get(), 0, data_at, 2, 1, &bell);
  const auto keep_looking = [](const std::function<void()>& look, const std::function<Status(int64_t)>& of_others) {
    int thrown = 0;
    for (int64_t n = 0;; ++n) {
      CHECK_OK(of_others(n));
      callers_left = n;
      try {
        look();
      } catch (const std::bad_alloc&) {
        ++thrown;
      }
      if (std::exchange(callers_left, kEnough) >= 0) break;
    }
    CHECK(thrown > 0);
  };
  const std::string why = "a reason that is longer than what a string holds without an allocation";
  std::vector<Departure> departures;
  keep_looking([&] { CHECK_OK(mine.take(&departures)); }, [&](int64_t) { return others.add({130, 1, 0, why}); });
  keep_looking([&] { CHECK_EQ(mine.unaffected(131), uint64_t{2}); }, [&](int64_t) { return others.add({131, 1, 2, why}); });

  Post post;
  bool posted = false;
  uint32_t entry = 0;
  CHECK_OK(my_table.post(post, false, &posted, &entry));
  const auto who = [&] {
    std::vector<bool> ranks;
    CHECK_OK(my_table.who_posted(entry, &ranks));
  };
  keep_looking(who, [&](int64_t n) {
    Post other;
    other.key.a = 1 + static_cast<uint64_t>(n);
    uint32_t others_entry = 0;
    return other_table.post(other, false, &posted, &others_entry);
  });
}

TEST_MAIN()
