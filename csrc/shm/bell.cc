// Bell over Linux futexes. The word lies in memory shared by processes, so the futex is not a
// private one. Waking counts as one change of the word: a sleeper whose ticket is older than
// the word does not fall asleep at all.
#include "shm/bell.h"

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ringreduce {
namespace {

// The kernel reads the word as a plain 32-bit integer.
static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "a futex is 32 bits");
static_assert(std::atomic<uint32_t>::is_always_lock_free, "a lock would not be shared by processes");

long futex(const std::atomic<uint32_t>* word, int operation, uint32_t value, const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<const uint32_t*>(word), operation, value, timeout, nullptr, 0);
}

constexpr int64_t kSecond = 1'000'000'000;

}  // namespace

void Bell::ring() {
  full_fence();
  if (sleepers_.load(std::memory_order_relaxed) == 0) return;
  sequence_.fetch_add(1, std::memory_order_release);
  futex(&sequence_, FUTEX_WAKE, INT_MAX, nullptr);
}

void Bell::sleep(uint32_t ticket, int64_t timeout_ns) {
  if (timeout_ns <= 0) return;
  timespec timeout{static_cast<time_t>(timeout_ns / kSecond), static_cast<long>(timeout_ns % kSecond)};
  // Every outcome (woken, word already changed, time over, a signal) means: look again.
  futex(&sequence_, FUTEX_WAIT, ticket, &timeout);
}

}  // namespace ringreduce
