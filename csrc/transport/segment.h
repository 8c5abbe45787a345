// Memory that the ranks of one host share. It is a memfd that the other ranks reach through
// /proc/PID/fd, so nothing is left behind however a job ends; where /proc cannot be used
// (ranks in separate PID namespaces) it is a POSIX segment that is unlinked as soon as every
// rank has mapped it. Pages are allocated when first touched: an unused part costs nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "common/status.h"

namespace ringreduce {

class Segment {
 public:
  enum class Kind { kMemfd, kPosix };

  // The creator's side. path() is what the other ranks pass to open().
  static Status create(Kind kind, size_t bytes, std::shared_ptr<Segment>* out);
  static Status open(const std::string& path, size_t bytes, std::shared_ptr<Segment>* out);
  // Plain memory for ranks that are threads of one process (tests), zeroed as all segments
  // are; null if there is no memory.
  static std::shared_ptr<Segment> in_process(size_t bytes);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  char* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // Removes the name of a POSIX segment (no-op for a memfd). Call once every rank has it open.
  void unlink();

 private:
  Segment() = default;
  char* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
  bool linked_ = false;
  std::string path_;
};

}  // namespace ringreduce
