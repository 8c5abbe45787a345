// A net that counts what one rank sends.
#pragma once

#include <atomic>
#include <memory>

#include "net/net.h"

namespace ringreduce {

struct Counts {
  int sends;
  size_t sent_bytes;
};

struct Traffic {
  std::atomic<int> sends{0};
  std::atomic<size_t> sent_bytes{0};
  Counts counts() const { return {sends, sent_bytes}; }
};

class CountingNet : public Net {
 public:
  CountingNet(std::unique_ptr<Net> inner, Traffic* traffic) : inner_(std::move(inner)), traffic_(traffic) {}
  Status isend(int to, int tag, const void* data, size_t bytes, Request* request) override {
    ++traffic_->sends;
    traffic_->sent_bytes += bytes;
    return inner_->isend(to, tag, data, bytes, request);
  }
  Status irecv(int from, int tag, void* data, size_t bytes, Request* request) override {
    return inner_->irecv(from, tag, data, bytes, request);
  }
  Status test(Request* request, bool* done) override { return inner_->test(request, done); }
  void cancel(Request* request) override { inner_->cancel(request); }

 private:
  std::unique_ptr<Net> inner_;
  Traffic* traffic_;
};

}  // namespace ringreduce
