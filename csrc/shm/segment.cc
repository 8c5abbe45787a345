// Segment over mmap: a memfd, a file in /dev/shm, or plain anonymous memory.
#include "shm/segment.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

namespace ringreduce {
namespace {

// A POSIX segment's path is this prefix and its name; a memfd's path is a real one.
const std::string kPosixPrefix = "shm:";
const char kShm[] = "/dev/shm";

Status system_error(const std::string& what, int error) {
  return Status(Code::kSystem, what + ": " + std::strerror(error));
}

bool is_posix(const std::string& path) { return path.compare(0, kPosixPrefix.size(), kPosixPrefix) == 0; }

// What shm_open would open. Done by hand because older C libraries keep shm_open in librt,
// which the core may not link to.
std::string file_of(const std::string& path) { return is_posix(path) ? kShm + path.substr(kPosixPrefix.size()) : path; }

// The secret lies in a page of its own behind the data, where it disturbs no layout.
size_t secret_offset(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}
size_t file_bytes(size_t bytes) { return secret_offset(bytes) + static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

Status create_memfd(int* fd, std::string* path) {
  *fd = memfd_create("ringreduce", MFD_CLOEXEC);
  if (*fd < 0) return system_error("cannot create a shared memory segment (memfd_create)", errno);
  // Our pid as this /proc knows it: it may be that of another PID namespace than ours.
  char self[32] = {};
  if (readlink("/proc/self", self, sizeof self - 1) <= 0) return system_error("cannot read /proc/self", errno);
  *path = "/proc/" + std::string(self) + "/fd/" + std::to_string(*fd);
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

// With vm.overcommit_memory at 2 the kernel refuses pages of a memfd, too.
bool overcommits() {
  char mode = '0';
  const int fd = open("/proc/sys/vm/overcommit_memory", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return true;
  if (read(fd, &mode, 1) != 1) mode = '0';
  close(fd);
  return mode != '2';
}

std::string mib(uint64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

// Why `bytes` more cannot be had, and what to do about it.
Status no_room(const std::string& path, size_t bytes) {
  struct statvfs fs;
  if (!is_posix(path) || statvfs(kShm, &fs) != 0)
    return {Code::kSystem, "the system refuses " + mib(bytes) + " of shared memory (vm.overcommit_memory is 2); "
                           "raise vm.overcommit_ratio, or use fewer ranks on this host"};
  const uint64_t all = uint64_t{fs.f_blocks} * fs.f_frsize, free = uint64_t{fs.f_bavail} * fs.f_frsize;
  const std::string enough = std::to_string((all - free + bytes + bytes / 8) / (1 << 20) + 1);
  return {Code::kSystem, mib(bytes) + " of shared memory are needed, and " + kShm + " has " + mib(all) + " in all, of which " +
                         std::to_string(free >> 20) + " MiB are free; make it larger: docker run --shm-size=" + enough +
                         "m (or --ipc=host), or mount -o remount,size=" + enough + "M " + kShm};
}

bool has_room(const std::string& path, size_t bytes) {
  struct statvfs fs;
  if (!is_posix(path) || statvfs(kShm, &fs) != 0 || !fs.f_blocks) return true;  // no blocks: without a limit
  return bytes <= uint64_t{fs.f_bavail} * fs.f_frsize;
}

// Before it is opened, too: opening a device or a pipe of somebody else would do something to it.
Status check_identity(const struct stat& info, const SegmentOffer& offer, size_t bytes) {
  if (!S_ISREG(info.st_mode) || info.st_dev != offer.device || info.st_ino != offer.inode)
    return {Code::kSystem, offer.path + " is here another file than the shared memory segment that was offered (the ranks "
                           "have a /proc or /dev/shm of their own each, as in separate containers)"};
  // Touching what the file does not have would be a SIGBUS.
  if (static_cast<size_t>(info.st_size) != file_bytes(bytes))
    return {Code::kSystem, "the shared memory segment " + offer.path + " has " + std::to_string(info.st_size) +
                               " bytes, not the " + std::to_string(file_bytes(bytes)) + " expected"};
  return Status::ok();
}

}  // namespace

Status Segment::create(Backing kind, size_t bytes, size_t reserve, std::shared_ptr<Segment>* out) {
  std::shared_ptr<Segment> segment(new Segment);  // its destructor cleans up after a failure
  std::string& path = segment->offer_.path;
  RR_TRY(kind == Backing::kMemfd ? create_memfd(&segment->fd_, &path) : create_posix(&segment->fd_, &path));
  segment->linked_ = kind == Backing::kPosix;
  segment->limited_ = kind == Backing::kPosix || !overcommits();
  if (!has_room(path, reserve)) return no_room(path, reserve);
  if (ftruncate(segment->fd_, static_cast<off_t>(file_bytes(bytes))) != 0) {
    return system_error("cannot give the shared memory segment " + path + " " + std::to_string(bytes) + " bytes", errno);
  }
  RR_TRY(segment->identify(bytes));
  RR_TRY(map_shared(segment->fd_, bytes, path, &segment->data_));
  segment->size_ = bytes;
  *out = std::move(segment);
  return Status::ok();
}

Status Segment::identify(size_t bytes) {
  struct stat info;
  if (fstat(fd_, &info) != 0) return system_error("cannot stat the shared memory segment " + path(), errno);
  offer_.device = info.st_dev;
  offer_.inode = info.st_ino;
  if (getrandom(&offer_.secret, sizeof offer_.secret, 0) != sizeof offer_.secret) return system_error("getrandom", errno);
  const off_t at = static_cast<off_t>(secret_offset(bytes));
  if (pwrite(fd_, &offer_.secret, sizeof offer_.secret, at) == sizeof offer_.secret) return Status::ok();
  return errno == ENOSPC || errno == ENOMEM ? no_room(path(), 1)
                                            : system_error("cannot write to the shared memory segment " + path(), errno);
}

Status Segment::open(const SegmentOffer& offer, size_t bytes, std::shared_ptr<Segment>* out) {
  std::shared_ptr<Segment> segment(new Segment);
  segment->offer_ = offer;
  const std::string file = file_of(offer.path);
  struct stat info;
  if (stat(file.c_str(), &info) != 0) return system_error("cannot open the shared memory segment " + offer.path, errno);
  RR_TRY(check_identity(info, offer, bytes));
  segment->fd_ = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  if (segment->fd_ < 0) return system_error("cannot open the shared memory segment " + offer.path, errno);
  if (fstat(segment->fd_, &info) != 0) return system_error("cannot stat the shared memory segment " + offer.path, errno);
  RR_TRY(check_identity(info, offer, bytes));  // of what was opened
  uint64_t secret = 0;
  const ssize_t got = pread(segment->fd_, &secret, sizeof secret, static_cast<off_t>(secret_offset(bytes)));
  if (got != sizeof secret || secret != offer.secret)
    return {Code::kSystem, offer.path + " does not have the secret of the shared memory segment that was offered"};
  RR_TRY(map_shared(segment->fd_, bytes, offer.path, &segment->data_));
  segment->size_ = bytes;
  segment->limited_ = is_posix(offer.path) || !overcommits();
  if (!segment->limited_) {  // the mapping stays; only the creator's descriptor is a meeting point
    close(segment->fd_);
    segment->fd_ = -1;
  }
  *out = std::move(segment);
  return Status::ok();
}

Status Segment::reserve(size_t offset, size_t bytes) const {
  constexpr size_t kPiece = 4 << 20;  // a signal undoes what the kernel has done of one call
  const size_t end = offset + bytes;
  if (!limited_) return Status::ok();
  while (offset < end) {
    const size_t piece = std::min(kPiece, end - offset);
    if (fallocate(fd_, 0, static_cast<off_t>(offset), static_cast<off_t>(piece)) == 0) {
      offset += piece;
    } else if (errno == EOPNOTSUPP) {
      return Status::ok();  // some sandboxes have no fallocate
    } else if (errno == ENOSPC || errno == ENOMEM) {
      return no_room(path(), end - offset);
    } else if (errno != EINTR) {
      return system_error("cannot reserve " + std::to_string(bytes) + " bytes of the shared memory segment " + path(), errno);
    }
  }
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
  if (linked_) ::unlink(file_of(path()).c_str());
  linked_ = false;
}

}  // namespace ringreduce
