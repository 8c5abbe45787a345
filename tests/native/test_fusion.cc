// Which neighbours of the log run as one: only those that are alike in dtype, reduction and factors.
#include <memory>
#include <vector>

#include "world.h"

using namespace ringreduce;

namespace {

constexpr size_t kNumel = 2000;  // more than goes into the table

// One allreduce of both ranks, of ones on rank 0 and twos on rank 1.
struct Sum {
  Submission how;
  double expected;
  std::vector<float> in[2], out[2];
  std::vector<int32_t> whole_in[2], whole_out[2];
  OpRef ops[2];
};

std::unique_ptr<Sum> make(int number, DType dtype, int op, double prescale, double postscale, double expected) {
  auto sum = std::make_unique<Sum>();
  sum->expected = expected;
  for (int rank : {0, 1}) {
    sum->in[rank].assign(kNumel, static_cast<float>(rank + 1));
    sum->out[rank].assign(kNumel, 0);
    sum->whole_in[rank].assign(kNumel, rank + 1);
    sum->whole_out[rank].assign(kNumel, 0);
  }
  sum->how.name = std::to_string(number);
  sum->how.dtype = dtype;
  sum->how.op = op;
  sum->how.prescale = prescale;
  sum->how.postscale = postscale;
  return sum;
}

}  // namespace

// All are agreed on before a rank looks at the log: only then are there neighbours.
TEST(only_neighbours_that_are_alike_run_as_one) {
  for (const auto& layout : {std::vector<int>{0, 0}, std::vector<int>{0, 1}}) {
    WorldOptions options;
    options.host_of = layout;
    options.fusion_bytes = 64 * kNumel;
    World world(options);
    std::vector<std::unique_ptr<Sum>> sums;
    const auto add = [&](DType dtype, int op, double prescale, double postscale, double expected) {
      sums.push_back(make(static_cast<int>(sums.size()), dtype, op, prescale, postscale, expected));
    };
    add(DType::kFloat32, kOpSum, 1, 1, 3);
    add(DType::kFloat32, kOpSum, 1, 1, 3);
    add(DType::kFloat32, kOpMax, 1, 1, 2);
    add(DType::kInt32, kOpSum, 1, 1, 3);
    add(DType::kFloat32, kOpSum, 2, 1, 6);
    add(DType::kFloat32, kOpSum, 1, 4, 12);
    add(DType::kFloat32, kOpSum, 1, 1, 3);
    std::unique_ptr<Engine> engines[2] = {world.engine(0), world.engine(1)};
    for (int rank : {0, 1})
      for (auto& sum : sums) {
        const bool whole = sum->how.dtype == DType::kInt32;
        Submission s = whole ? allreduce_of(sum->how.name, sum->whole_in[rank], &sum->whole_out[rank], sum->how.dtype, sum->how.op)
                             : allreduce_of(sum->how.name, sum->in[rank], &sum->out[rank], sum->how.dtype, sum->how.op);
        s.prescale = sum->how.prescale;
        s.postscale = sum->how.postscale;
        CHECK_OK(engines[rank]->submit(0, s, false, &sum->ops[rank]));
      }
    for (auto& sum : sums)
      for (bool done[2] = {}; !done[0] || !done[1];)
        for (int rank : {0, 1}) CHECK_OK(engines[rank]->wait(*sum->ops[rank], 60, 1e-3, &done[rank]));
    for (auto& sum : sums)
      for (int rank : {0, 1})
        for (size_t i = 0; i < kNumel; ++i)
          CHECK_EQ(sum->how.dtype == DType::kInt32 ? sum->whole_out[rank][i] : sum->out[rank][i], sum->expected);
    std::thread other([&] { engines[1]->close(10); });
    engines[0]->close(10);
    other.join();
  }
}

TEST_MAIN()
