// Segment over mmap: a memfd, a file in /dev/shm, or plain anonymous memory.
#include "transport/segment.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ringreduce {
namespace {

// A POSIX segment's path is this prefix and its name; a memfd's path is a real one.
const std::string kPosixPrefix = "shm:";

Status system_error(const std::string& what, int error) {
  return Status(Code::kSystem, what + ": " + std::strerror(error));
}

// What shm_open would open. Done by hand because older C libraries keep shm_open in librt,
// which the core may not link to.
std::string file_of(const std::string& path) {
  const bool posix = path.compare(0, kPosixPrefix.size(), kPosixPrefix) == 0;
  return posix ? "/dev/shm" + path.substr(kPosixPrefix.size()) : path;
}

Status create_memfd(int* fd, std::string* path) {
  *fd = memfd_create("ringreduce", MFD_CLOEXEC);
  if (*fd < 0) return system_error("cannot create a shared memory segment (memfd_create)", errno);
  *path = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(*fd);
  return Status::ok();
}

Status create_posix(int* fd, std::string* path) {
  static std::atomic<int> counter{0};
  // A name may be taken: by a rank with our PID in another PID namespace, or by a dead one.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    *path = kPosixPrefix + "/ringreduce-" + std::to_string(getpid()) + "-" + std::to_string(counter++);
    *fd = open(file_of(*path).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd >= 0) return Status::ok();
    if (errno != EEXIST) break;
  }
  return system_error("cannot create the shared memory segment " + *path, errno);
}

Status map_shared(int fd, size_t bytes, const std::string& path, char** data) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) {
    return system_error("cannot map " + std::to_string(bytes) + " bytes of the shared memory segment " + path, errno);
  }
  // Fewer page faults where the kernel has huge pages for shared memory; a no-op elsewhere.
  madvise(address, bytes, MADV_HUGEPAGE);
  *data = static_cast<char*>(address);
  return Status::ok();
}

}  // namespace

Status Segment::create(Kind kind, size_t bytes, std::shared_ptr<Segment>* out) {
  std::shared_ptr<Segment> segment(new Segment);  // its destructor cleans up after a failure
  RR_TRY(kind == Kind::kMemfd ? create_memfd(&segment->fd_, &segment->path_)
                              : create_posix(&segment->fd_, &segment->path_));
  segment->linked_ = kind == Kind::kPosix;
  if (ftruncate(segment->fd_, static_cast<off_t>(bytes)) != 0) {
    return system_error("cannot give the shared memory segment " + segment->path_ + " " + std::to_string(bytes) + " bytes", errno);
  }
  RR_TRY(map_shared(segment->fd_, bytes, segment->path_, &segment->data_));
  segment->size_ = bytes;
  *out = std::move(segment);
  return Status::ok();
}

Status Segment::open(const std::string& path, size_t bytes, std::shared_ptr<Segment>* out) {
  std::shared_ptr<Segment> segment(new Segment);
  segment->path_ = path;
  segment->fd_ = ::open(file_of(path).c_str(), O_RDWR | O_CLOEXEC);
  if (segment->fd_ < 0) return system_error("cannot open the shared memory segment " + path, errno);
  struct stat info;
  if (fstat(segment->fd_, &info) != 0) return system_error("cannot stat the shared memory segment " + path, errno);
  if (static_cast<size_t>(info.st_size) < bytes) {
    // Touching what the file does not have would be a SIGBUS.
    return Status(Code::kSystem, "the shared memory segment " + path + " has " + std::to_string(info.st_size) +
                                     " bytes, not the " + std::to_string(bytes) + " expected");
  }
  RR_TRY(map_shared(segment->fd_, bytes, path, &segment->data_));
  segment->size_ = bytes;
  close(segment->fd_);  // the mapping stays; only the creator's descriptor is a meeting point
  segment->fd_ = -1;
  *out = std::move(segment);
  return Status::ok();
}

std::shared_ptr<Segment> Segment::in_process(size_t bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  std::shared_ptr<Segment> segment(new Segment);
  segment->data_ = static_cast<char*>(address);
  segment->size_ = bytes;
  return segment;
}

Segment::~Segment() {
  unlink();
  if (data_) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
}

void Segment::unlink() {
  if (linked_) ::unlink(file_of(path_).c_str());
  linked_ = false;
}

}  // namespace ringreduce
