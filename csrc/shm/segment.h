// Memory that the ranks of one host share. It is a memfd that the other ranks reach through
// /proc/PID/fd, so nothing is left behind however a job ends; where /proc cannot be used
// (ranks in separate PID namespaces) it is a POSIX segment that is unlinked as soon as every
// rank has mapped it. Pages are allocated when first touched: an unused part costs nothing.
//
//   | data, `bytes` of it, mapped by all | to the page | secret |
//
// The path alone does not say which file it leads to: in another PID namespace /proc/PID/fd/N is
// a file of somebody else, in another container /dev/shm another directory. So the creator offers
// device, inode and a secret beside the path, and a rank maps only what has all three.
//
// Touching a page that the system cannot give is a SIGBUS. Where that may happen (/dev/shm has a
// limit, 64 MiB under Docker, or the kernel overcommits nothing) reserve() is called before the
// first touch, and its error says how much is needed and how much there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"

namespace ringreduce {

// What the creator of a segment tells the ranks that are to open it.
struct SegmentOffer {
  std::string path;
  uint64_t device = 0, inode = 0, secret = 0;
};

class Segment {
 public:
  enum class Backing { kMemfd, kPosix };

  // The creator's side. `reserve`: of the bytes, how many the ranks will reserve at once; an error if there
  // is no room for them.
  static Status create(Backing kind, size_t bytes, size_t reserve, std::shared_ptr<Segment>* out);
  static Status open(const SegmentOffer& offer, size_t bytes, std::shared_ptr<Segment>* out);
  // Plain memory for ranks that are threads of one process (tests), zeroed as all segments
  // are; null if there is no memory.
  static std::shared_ptr<Segment> in_process(size_t bytes);

  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  char* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return offer_.path; }
  const SegmentOffer& offer() const { return offer_; }  // of the creator's side

  // Makes sure that these bytes can be touched. What is there already is left as it is, so any rank may call
  // it, and again. No-op where the system gives memory until there is none in the machine.
  Status reserve(size_t offset, size_t bytes) const;

  // Removes the name of a POSIX segment (no-op for a memfd). Call once every rank has it open.
  void unlink();

 private:
  Segment() = default;
  Status identify(size_t bytes);
  char* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
  bool linked_ = false, limited_ = false;
  SegmentOffer offer_;
};

}  // namespace ringreduce
