// What control.h offers of streams, graphs and memory.
#include "handles.h"
#include "memory.h"

using namespace ringreduce::doubles;

int rr_double_stream_synchronize(void* stream) {
  RR_STREAM(found, find_stream);
  found->wait(found->enqueued());
  return kSuccess;
}

void* rr_double_stream_create() {
  std::shared_ptr<Stream> made = Stream::start(rr_double_current_device());
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().streams[made.get()] = made;
  return made.get();
}

int rr_double_stream_destroy(void* stream) {
  RR_STREAM(found, find_stream);
  found->close();
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().streams.erase(stream);
  return kSuccess;
}

int rr_double_stall(void* stream, int on) {
  RR_STREAM(found, find_stream);
  found->stall(on);
  return kSuccess;
}

void rr_double_stall_all(int on) {
  std::lock_guard<std::mutex> lock(handles().mutex);
  for (auto& [handle, stream] : handles().streams) stream->stall(on);
  for (auto& [device, stream] : handles().default_streams) stream->stall(on);
}

int rr_double_capture_begin(void* stream) {
  RR_STREAM(found, find_stream);
  auto graph = std::make_shared<Graph>();
  graph->origin = found.get();
  found->set_graph(graph);
  std::lock_guard<std::mutex> lock(handles().mutex);
  handles().graphs[graph.get()] = graph;
  return kSuccess;
}

void* rr_double_capture_end(void* stream) {
  const std::shared_ptr<Stream> origin = find_stream(stream, __func__);
  const std::shared_ptr<Graph> graph = origin ? origin->graph() : nullptr;
  if (!graph || graph->origin != origin.get()) return misuse(0, "no capture began on this stream"), nullptr;
  {
    std::lock_guard<std::mutex> lock(handles().mutex);
    for (auto& [handle, other] : handles().streams)
      if (other->graph() == graph) other->set_graph(nullptr);
    origin->set_graph(nullptr);
  }
  std::lock_guard<std::mutex> lock(graph->mutex);
  graph->ended = true;
  for (const auto& [branch, numbers] : graph->branches)
    if (branch != origin.get() && numbers.joined < numbers.last_work)
      return misuse(0, "the capture ends with work on a stream that was not joined"), nullptr;
  return graph.get();
}

int rr_double_graph_launch(void* graph, void* stream) {
  RR_STREAM(found, find_stream);
  std::lock_guard<std::mutex> lock(handles().mutex);
  const auto at = handles().graphs.find(graph);
  if (at == handles().graphs.end()) return kInvalidHandle;
  for (const Work& work : at->second->work) found->push(work);
  return kSuccess;
}

long rr_double_live_blocks() { return Memory::get().live(); }

void rr_double_check_memory(const void* memory, unsigned long bytes, const char* what) {
  Memory::get().check(memory, bytes, what);
}

int rr_double_stream_device(void* stream) {
  const std::shared_ptr<Stream> found = find_stream(stream, __func__);
  return found ? found->device() : -1;
}

int rr_double_is_capturing(void* stream) {
  const std::shared_ptr<Stream> found = find_stream(stream, __func__);
  return found && found->graph();
}

int rr_double_enqueue(void* stream, void (*work)(void*), void* state) {
  RR_STREAM(found, find_stream);
  found->push([work, state] { work(state); });
  return kSuccess;
}
