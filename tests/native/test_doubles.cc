// The double of CUDA itself: it must be as unkind as the real one, and as right. The double of NCCL
// has test_nccl_double.cc.
#include <array>

#include "../doubles/load.h"
#include "check.h"

namespace ringreduce {
namespace {

Doubles& doubles() { return Doubles::get(); }
const CudaApi& cuda() { return *doubles().cuda; }

struct Stream {
  void* raw = nullptr;
  Stream() { CHECK_EQ(cuda().stream_create(&raw), kCudaSuccess); }
  ~Stream() { doubles().stream_destroy(raw); }
  operator void*() const { return raw; }
};
struct Event {
  void* raw = nullptr;
  Event() { CHECK_EQ(cuda().event_create(&raw), kCudaSuccess); }
  ~Event() { cuda().event_destroy(raw); }
  operator void*() const { return raw; }
};

void copy(int* to, const int* from, void* stream) {
  CHECK_EQ(cuda().copy_async(to, from, sizeof(int), stream), kCudaSuccess);
}
void finish(void* stream) { CHECK_EQ(doubles().stream_synchronize(stream), 0); }

TEST(a_copy_reads_its_source_when_the_stream_gets_there) {
  Stream stream;
  doubles().stall(stream, 1);
  int from = 1, to = 0, again = 0;
  copy(&to, &from, stream);
  copy(&again, &to, stream);
  from = 2;
  CHECK_EQ(to, 0);
  doubles().stall(stream, 0);
  finish(stream);
  CHECK_EQ(to, 2);
  CHECK_EQ(again, 2);
}

TEST(an_event_is_what_was_enqueued_before_it_and_a_wait_keeps_the_record_it_saw) {
  Stream first, second;
  Event event;
  int one = 1, two = 2, middle = 0, result = 0;
  CHECK_EQ(cuda().event_query(event), kCudaSuccess);  // never recorded
  CHECK_EQ(cuda().stream_wait_event(second, event), kCudaSuccess);
  finish(second);
  doubles().stall(first, 1);
  copy(&middle, &one, first);
  CHECK_EQ(cuda().event_record(event, first), kCudaSuccess);
  CHECK_EQ(cuda().event_query(event), kCudaNotReady);
  CHECK_EQ(cuda().stream_wait_event(second, event), kCudaSuccess);
  copy(&result, &middle, second);
  doubles().stall(first, 0);
  finish(second);
  CHECK_EQ(result, 1);
  CHECK_EQ(cuda().event_query(event), kCudaSuccess);
  // Recorded again behind work that does not come: what was waited for before is reached.
  CHECK_EQ(cuda().stream_wait_event(second, event), kCudaSuccess);
  doubles().stall(first, 1);
  copy(&middle, &two, first);
  CHECK_EQ(cuda().event_record(event, first), kCudaSuccess);
  finish(second);
  CHECK_EQ(cuda().event_query(event), kCudaNotReady);
  doubles().stall(first, 0);
  finish(first);
  CHECK_EQ(middle, 2);
}

TEST(streams_run_side_by_side_and_waiting_blocks_one_only) {
  Stream stalled, waiting, other;
  Event event;
  doubles().stall(stalled, 1);
  int one = 1, late = 0, later = 0, soon = 0;
  copy(&late, &one, stalled);
  CHECK_EQ(cuda().event_record(event, stalled), kCudaSuccess);
  CHECK_EQ(cuda().stream_wait_event(waiting, event), kCudaSuccess);
  copy(&later, &late, waiting);
  copy(&soon, &one, other);
  finish(other);
  CHECK_EQ(soon, 1);
  doubles().stall(stalled, 0);
  finish(waiting);
  CHECK_EQ(later, 1);
}

TEST(the_default_stream_is_one_stream_of_the_current_device) {
  int one = 1, result = 0;
  doubles().stall(nullptr, 1);
  copy(&result, &one, nullptr);
  CHECK_EQ(result, 0);
  CHECK_EQ(cuda().set_device(1), kCudaSuccess);
  finish(nullptr);  // of the other device: not stalled
  CHECK_EQ(cuda().set_device(0), kCudaSuccess);
  doubles().stall(nullptr, 0);
  finish(nullptr);
  CHECK_EQ(result, 1);
}

TEST(freed_memory_is_freed_in_the_streams_order_and_not_twice) {
  doubles().reset();
  Stream stream;
  const long before = doubles().live_blocks();
  void* memory = nullptr;
  CHECK_EQ(cuda().malloc_async(&memory, sizeof(int), stream), kCudaSuccess);
  int seven = 7, result = 0;
  doubles().stall(stream, 1);
  copy(static_cast<int*>(memory), &seven, stream);
  copy(&result, static_cast<int*>(memory), stream);
  CHECK_EQ(cuda().free_async(memory, stream), kCudaSuccess);
  CHECK_EQ(doubles().live_blocks(), before + 1);
  doubles().stall(stream, 0);
  finish(stream);
  CHECK_EQ(result, 7);
  CHECK_EQ(doubles().live_blocks(), before);
  CHECK_EQ(doubles().misuses(), 0);
  CHECK(cuda().free_async(memory, stream) != kCudaSuccess);
  CHECK_EQ(doubles().misuses(), 1);
#ifndef __SANITIZE_ADDRESS__  // which stops here
  copy(&result, static_cast<int*>(memory), stream);
  finish(stream);
  CHECK_EQ(static_cast<unsigned>(result), 0xDDDDDDDDu);
  CHECK_EQ(doubles().misuses(), 2);
#endif
  void* pinned = nullptr;
  CHECK_EQ(cuda().host_malloc(&pinned, 8), kCudaSuccess);
  CHECK(cuda().free_async(pinned, stream) != kCudaSuccess);
  CHECK_EQ(cuda().host_free(pinned), kCudaSuccess);
}

TEST(writing_outside_of_a_block_is_noticed) {
  doubles().reset();
  Stream stream;
  void* memory = nullptr;
  CHECK_EQ(cuda().malloc_async(&memory, 6, stream), kCudaSuccess);
  const char bytes[8] = {};
  CHECK_EQ(cuda().copy_async(memory, bytes, 8, stream), kCudaSuccess);
  finish(stream);
  CHECK_EQ(doubles().misuses(), 1);  // the copy's
  CHECK_EQ(cuda().free_async(memory, stream), kCudaSuccess);
  finish(stream);
  CHECK_EQ(doubles().misuses(), 2);  // the block's
}

TEST(kernels_run_on_the_stream_with_the_arguments_of_the_call) {
  doubles().reset();
  Stream stream;
  float a[3] = {1, 2, 3}, b[2] = {4, 5}, bucket[5] = {}, sum[5] = {}, back[2] = {};
  doubles().stall(stream, 1);
  {
    std::vector<PackItem> items = {{a, 0, 3}, {b, 3, 2}};
    const PackArgs pack{bucket, DType::kFloat32, DType::kFloat32, items.data(), 2, 2.0};
    CHECK_EQ(cuda().pack(&pack, stream), kCudaSuccess);
    std::vector<const void*> sources = {bucket, bucket};
    const DeviceReduceArgs reduce{sum, sources.data(), 2, 5, DType::kFloat32, Reduction::kSum, {}};
    CHECK_EQ(cuda().reduce(&reduce, stream), kCudaSuccess);
    items = {{back, 3, 2}};
    const PackArgs unpack{sum, DType::kFloat32, DType::kFloat32, items.data(), 1, 0.5};
    CHECK_EQ(cuda().unpack(&unpack, stream), kCudaSuccess);
    items.assign(2, {nullptr, 0, 0});
    sources.assign(2, nullptr);
  }
  CHECK_EQ(bucket[4], 0.0f);
  doubles().stall(stream, 0);
  finish(stream);
  for (int i = 0; i < 5; ++i) CHECK_EQ(sum[i], 4.0f * (i + 1));
  CHECK_EQ(back[1], 10.0f);
  CHECK_EQ(doubles().count("launch"), 3);
  const void* source = sum;
  const DeviceReduceArgs wrong{sum, &source, 0, 5, DType::kFloat32, Reduction::kSum, {}};
  CHECK(cuda().reduce(&wrong, stream) != kCudaSuccess);
  CHECK_EQ(doubles().misuses(), 0);
}

TEST(merged_rows_are_summed_on_the_stream) {
  Stream stream;
  float values[4] = {1, 2, 4, 8}, out[2] = {};
  const int64_t order[4] = {3, 0, 1, 2}, first[3] = {0, 2, 4};
  const MergeRowsArgs args{out, values, order, first, 2, 1, DType::kFloat32, 0.5};
  CHECK_EQ(cuda().merge_rows(&args, stream), kCudaSuccess);
  finish(stream);
  CHECK_EQ(out[0], 4.5f);
  CHECK_EQ(out[1], 3.0f);
}

TEST(devices_differ_and_their_streams_are_told_apart) {
  doubles().reset();
  char first[32], second[32];
  CHECK_EQ(cuda().pci_bus_id(0, first, sizeof first), kCudaSuccess);
  CHECK_EQ(cuda().pci_bus_id(1, second, sizeof second), kCudaSuccess);
  CHECK(std::string(first) != second);
  doubles().set("same_pci", 1);
  CHECK_EQ(cuda().pci_bus_id(1, second, sizeof second), kCudaSuccess);
  CHECK_EQ(std::string(first), std::string(second));
  Stream stream;  // of GPU 0
  CHECK_EQ(cuda().set_device(1), kCudaSuccess);
  Event event;  // of GPU 1
  void* memory = nullptr;
  CHECK(cuda().malloc_async(&memory, 1, stream) != kCudaSuccess);
  CHECK(cuda().event_record(event, stream) != kCudaSuccess);
  CHECK_EQ(cuda().stream_wait_event(stream, event), kCudaSuccess);
  CHECK_EQ(cuda().set_device(0), kCudaSuccess);
  CHECK_EQ(doubles().misuses(), 2);
  doubles().set("devices", 3);
  int count = 0;
  CHECK_EQ(cuda().device_count(&count), kCudaSuccess);
  CHECK_EQ(count, 3);
  doubles().set("driver_version", 0);
  CHECK(cuda().device_count(&count) != kCudaSuccess);
  doubles().reset();
}

TEST(what_was_destroyed_is_not_used) {
  doubles().reset();
  void *stream = nullptr, *event = nullptr;
  CHECK_EQ(cuda().stream_create(&stream), kCudaSuccess);
  CHECK_EQ(cuda().event_create(&event), kCudaSuccess);
  CHECK_EQ(cuda().event_destroy(event), kCudaSuccess);
  CHECK(cuda().event_record(event, stream) != kCudaSuccess);
  CHECK_EQ(doubles().stream_destroy(stream), kCudaSuccess);
  CHECK(cuda().stream_synchronize(stream) != kCudaSuccess);
  CHECK_EQ(doubles().misuses(), 2);
}

TEST(faults_counts_and_traces) {
  doubles().reset();
  Stream stream;
  doubles().fail("event_query", 700, 1, -1);
  doubles().fail("event_query", 719, 0, 5);  // another rank's GPU
  Event event;
  CHECK_EQ(cuda().event_query(event), kCudaSuccess);
  CHECK_EQ(cuda().event_query(event), 700);
  CHECK_EQ(cuda().event_query(event), kCudaSuccess);
  doubles().trace_start();
  CHECK_EQ(cuda().event_record(event, stream), kCudaSuccess);
  CHECK_EQ(doubles().count("host_sync"), 0);
  CHECK_EQ(cuda().stream_synchronize(stream), kCudaSuccess);
  const std::string trace = doubles().trace_stop();
  CHECK_EQ(trace.find("event_record device 0 stream 0x"), 0u);
  CHECK(trace.find("\nstream_synchronize device 0") != std::string::npos);
  CHECK_EQ(doubles().count("event_query"), 3);
  CHECK_EQ(doubles().count("host_sync"), 1);
  doubles().reset();
}

TEST(a_captured_graph_runs_when_it_is_launched) {
  doubles().reset();
  Stream stream, branch;
  Event forked, joined;
  int one = 1, middle = 0, result = 0, capturing = 0;
  CHECK_EQ(doubles().capture_begin(stream), 0);
  CHECK_EQ(cuda().event_record(forked, stream), kCudaSuccess);
  CHECK_EQ(cuda().stream_wait_event(branch, forked), kCudaSuccess);
  CHECK_EQ(cuda().stream_is_capturing(branch, &capturing), kCudaSuccess);
  CHECK_EQ(capturing, 1);
  copy(&middle, &one, branch);
  CHECK_EQ(cuda().event_record(joined, branch), kCudaSuccess);
  CHECK_EQ(cuda().stream_wait_event(stream, joined), kCudaSuccess);
  copy(&result, &middle, stream);
  CHECK_EQ(doubles().misuses(), 0);
  CHECK(cuda().event_query(joined) != kCudaSuccess);
  CHECK(cuda().stream_synchronize(stream) != kCudaSuccess);
  CHECK_EQ(doubles().misuses(), 2);
  void* graph = doubles().capture_end(stream);
  CHECK(graph != nullptr);
  finish(stream);
  finish(branch);
  CHECK_EQ(result, 0);
  for (int value : {3, 4}) {
    one = value;
    CHECK_EQ(doubles().graph_launch(graph, stream), 0);
    finish(stream);
    CHECK_EQ(result, value);
  }
  CHECK(cuda().stream_wait_event(branch, joined) != kCudaSuccess);  // of the capture, which is over
  // A branch that does not come back.
  CHECK_EQ(doubles().capture_begin(stream), 0);
  CHECK_EQ(cuda().event_record(forked, stream), kCudaSuccess);
  CHECK_EQ(cuda().stream_wait_event(branch, forked), kCudaSuccess);
  copy(&middle, &one, branch);
  CHECK(doubles().capture_end(stream) == nullptr);
  CHECK_EQ(doubles().misuses(), 4);
}

TEST(delayed_streams_keep_their_order) {
  doubles().reset();
  doubles().set("delay_us", 300);
  std::array<Stream, 3> streams;
  std::array<Event, 3> events;
  std::array<int, 4> values = {1, 0, 0, 0};
  for (int round = 0; round < 20; ++round) {
    values[0] = round;
    for (int i = 0; i < 3; ++i) {
      if (i) CHECK_EQ(cuda().stream_wait_event(streams[i], events[i - 1]), kCudaSuccess);
      copy(&values[i + 1], &values[i], streams[i]);
      CHECK_EQ(cuda().event_record(events[i], streams[i]), kCudaSuccess);
    }
    finish(streams[2]);
    CHECK_EQ(values[3], round);
  }
  doubles().reset();
}

}  // namespace
}  // namespace ringreduce

TEST_MAIN()
