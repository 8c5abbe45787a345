// The streams, events and graphs that exist, by the addresses that users have of them.
#pragma once

#include <unordered_map>

#include "streams.h"

namespace ringreduce::doubles {

struct Handles {
  std::mutex mutex;
  std::unordered_map<void*, std::shared_ptr<Stream>> streams;
  std::unordered_map<void*, std::shared_ptr<Event>> events;
  std::unordered_map<void*, std::shared_ptr<Graph>> graphs;
  std::map<int, std::shared_ptr<Stream>> default_streams;
};

inline Handles& handles() {
  static Handles& handles = *new Handles;
  return handles;
}

inline std::shared_ptr<Stream> find_stream(void* stream, const char* function) {
  Handles& all = handles();
  std::lock_guard<std::mutex> lock(all.mutex);
  if (!stream) {
    std::shared_ptr<Stream>& found = all.default_streams[rr_double_current_device()];
    if (!found) found = Stream::start(rr_double_current_device());
    return found;
  }
  const auto at = all.streams.find(stream);
  if (at != all.streams.end()) return at->second;
  misuse(0, std::string(function) + ": there is no such stream, or no longer");
  return nullptr;
}

inline std::shared_ptr<Event> find_event(void* event, const char* function) {
  Handles& all = handles();
  std::lock_guard<std::mutex> lock(all.mutex);
  const auto at = all.events.find(event);
  if (at != all.events.end()) return at->second;
  misuse(0, std::string(function) + ": there is no such event, or no longer");
  return nullptr;
}

// Kernels and allocations are refused on a stream of a device that is not the current one.
inline std::shared_ptr<Stream> find_own_stream(void* stream, const char* function) {
  std::shared_ptr<Stream> found = find_stream(stream, function);
  if (!found || found->device() == rr_double_current_device()) return found;
  misuse(0, std::string(function) + ": the stream is of GPU " + std::to_string(found->device()) + ", the current one is " +
                std::to_string(rr_double_current_device()));
  return nullptr;
}

// In functions that have a `stream`: names what it is, or returns an error.
#define RR_STREAM(name, find)               \
  const auto name = find(stream, __func__); \
  if (!name) return kInvalidHandle

}  // namespace ringreduce::doubles
