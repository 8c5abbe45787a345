// Streams and events. A stream is a thread that runs what was enqueued, one piece after the other.
// Its work is numbered, so that an event is a stream and a number:
//
//   stream   1 2 3 4 5 ─►        record: event = (stream, 3)
//                ▲               query: done >= 3      wait: a piece of work that waits for that
//
// A stream that captures adds to a graph instead, and so does one that waits for its events.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "control.h"

namespace ringreduce::doubles {

// CUDA's numbers for what goes wrong here.
constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidDevice = 101,
              kInvalidHandle = 400, kNotReady = 600, kAlreadyPinned = 712, kCaptureUnsupported = 900, kCaptureUnjoined = 904,
              kCaptureIsolation = 905, kCapturedEvent = 907;

inline int misuse(int error, const std::string& text) {
  rr_double_misuse(text.c_str());
  return error;
}

using Work = std::function<void()>;
class Stream;

// What was captured, in the order of the calls: one that respects every dependency.
struct Graph {
  std::mutex mutex;
  std::vector<Work> work;
  const Stream* origin = nullptr;
  bool ended = false;
  struct Branch {
    size_t last_work, joined;  // sizes of `work`
  };
  std::map<const Stream*, Branch> branches;
};

class Stream {
 public:
  static std::shared_ptr<Stream> start(int device) {
    std::shared_ptr<Stream> stream(new Stream(device));
    std::thread([stream] { stream->run(); }).detach();  // ends when the stream is closed and idle
    return stream;
  }

  int device() const { return device_; }

  void push(Work work) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (graph_) {
      std::lock_guard<std::mutex> graph_lock(graph_->mutex);
      graph_->work.push_back(std::move(work));
      graph_->branches[this].last_work = graph_->work.size();
      return;
    }
    queue_.push_back(std::move(work));
    ++enqueued_;
    changed_.notify_all();
  }
  uint64_t enqueued() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return enqueued_;
  }
  bool reached(uint64_t number) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_ >= number;
  }
  void wait(uint64_t number) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= number; });
  }
  void stall(bool on) {
    std::lock_guard<std::mutex> lock(mutex_);
    stalled_ = on;
    changed_.notify_all();
  }
  void close() {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    stalled_ = false;
    changed_.notify_all();
  }
  std::shared_ptr<Graph> graph() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return graph_;
  }
  void set_graph(std::shared_ptr<Graph> graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    graph_ = std::move(graph);
  }

 private:
  explicit Stream(int device) : device_(device) {
    static std::mutex& mutex = *new std::mutex;
    static unsigned streams = 0;
    std::lock_guard<std::mutex> lock(mutex);
    random_.seed(static_cast<unsigned>(rr_double_get("seed")) * 1000 + streams++);
  }

  void run() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return queue_.empty() ? closed_ : !stalled_; });
      if (queue_.empty()) return;
      Work work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      if (const long longest = rr_double_get("delay_us"))
        std::this_thread::sleep_for(std::chrono::microseconds(random_() % static_cast<unsigned long>(longest + 1)));
      work();
      work = nullptr;  // what it holds is let go before it counts as done
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  const int device_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Work> queue_;
  uint64_t enqueued_ = 0, done_ = 0;
  bool stalled_ = false, closed_ = false;
  std::shared_ptr<Graph> graph_;
  std::minstd_rand random_;
};

// Not recorded yet: done. What a wait or a query saw of it is not changed by a later record.
class Event {
 public:
  explicit Event(int device) : device_(device) {}

  int record(const std::shared_ptr<Stream>& stream) {
    if (stream->device() != device_)
      return misuse(kInvalidHandle, "event_record: the event is of another device than the stream");
    std::lock_guard<std::mutex> lock(mutex_);
    stream_ = stream;
    number_ = stream->enqueued();
    graph_ = stream->graph();
    if (!graph_) return kSuccess;
    std::lock_guard<std::mutex> graph_lock(graph_->mutex);
    number_ = graph_->branches[stream.get()].last_work;
    return kSuccess;
  }

  int query() const {
    std::lock_guard<std::mutex> lock(mutex_);
    if (graph_) return misuse(kCapturedEvent, "event_query: the event was recorded in a capture");
    return !stream_ || stream_->reached(number_) ? kSuccess : kNotReady;
  }

  int make_wait(const std::shared_ptr<Stream>& waiting) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const std::shared_ptr<Graph> graph = waiting->graph();
    if (!stream_) return kSuccess;
    if (!graph_ && graph)
      return misuse(kCaptureIsolation, "stream_wait_event: a stream that captures waits for an event from before the capture");
    if (graph && graph != graph_) return misuse(kCaptureIsolation, "stream_wait_event: the event is of another capture");
    if (!graph_) {
      waiting->push([stream = stream_, number = number_] { stream->wait(number); });
      return kSuccess;
    }
    {
      std::lock_guard<std::mutex> graph_lock(graph_->mutex);
      if (graph_->ended) return misuse(kCaptureIsolation, "stream_wait_event: the event is of a capture that has ended");
      Graph::Branch& branch = graph_->branches[stream_.get()];
      if (branch.joined < number_) branch.joined = number_;
    }
    if (!graph) waiting->set_graph(graph_);  // a stream's lock comes before its graph's
    return kSuccess;
  }

 private:
  const int device_;
  mutable std::mutex mutex_;
  std::shared_ptr<Stream> stream_;
  uint64_t number_ = 0;
  std::shared_ptr<Graph> graph_;
};

}  // namespace ringreduce::doubles
