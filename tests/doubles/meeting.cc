#include "meeting.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace ringreduce::doubles {

namespace {

// Copies between a plain buffer and the ring in at most two pieces.
template <typename Copy>
void in_pieces(uint64_t at, size_t bytes, Copy copy) {
  const size_t begin = at % Pipe::kBytes, first = std::min(bytes, Pipe::kBytes - begin);
  copy(begin, 0, first);
  if (bytes > first) copy(0, first, bytes - first);
}

}  // namespace

size_t Pipe::write(const char* from, size_t bytes) {
  const uint64_t at = written.load(std::memory_order_relaxed);
  bytes = std::min<size_t>(bytes, kBytes - (at - read.load(std::memory_order_acquire)));
  if (!bytes) return 0;
  in_pieces(at, bytes, [&](size_t ring, size_t buffer, size_t n) { std::memcpy(data + ring, from + buffer, n); });
  written.store(at + bytes, std::memory_order_release);
  return bytes;
}

size_t Pipe::take(char* to, size_t bytes) {
  const uint64_t at = read.load(std::memory_order_relaxed);
  bytes = std::min<size_t>(bytes, written.load(std::memory_order_acquire) - at);
  if (!bytes) return 0;
  in_pieces(at, bytes, [&](size_t ring, size_t buffer, size_t n) { std::memcpy(to + buffer, data + ring, n); });
  read.store(at + bytes, std::memory_order_release);
  return bytes;
}

std::shared_ptr<Meeting> Meeting::open(const std::string& name, int size) {
  static std::mutex& mutex = *new std::mutex;
  static auto& opened = *new std::map<std::string, std::weak_ptr<Meeting>>;
  std::lock_guard<std::mutex> lock(mutex);
  if (std::shared_ptr<Meeting> meeting = opened[name].lock()) return meeting->size_ == size ? meeting : nullptr;
  std::shared_ptr<Meeting> meeting(new Meeting);
  meeting->path_ = "/dev/shm/" + name;
  meeting->size_ = size;
  // All ranks do the same; a new file is full of zeros, which is what a meeting begins with.
  const int fd = ::open(meeting->path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return nullptr;
  void* address = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(meeting->bytes())) == 0)
    address = mmap(nullptr, meeting->bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (address == MAP_FAILED) return nullptr;
  meeting->data_ = static_cast<char*>(address);
  opened[name] = meeting;
  return meeting;
}

Meeting::~Meeting() {
  if (data_) munmap(data_, bytes());
}

void Meeting::ring_all() {
  for (int rank = 0; rank < size_; ++rank) seat(rank).bell.ring();
}

void Meeting::unlink() { ::unlink(path_.c_str()); }

}  // namespace ringreduce::doubles
