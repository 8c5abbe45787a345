#include "liveness/watch.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <system_error>

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/show.h"

namespace ringreduce {

namespace {

constexpr int64_t kPatienceNs = 300 * kMillisecond;  // with a cause that may follow from another one
constexpr int64_t kAnswerNs = 1000 * kMillisecond;   // that the root has, and a host's guardians half as much again
constexpr int64_t kAgainNs = 50 * kMillisecond;
constexpr int64_t kDoorbellNs = 1000 * kMillisecond;  // a guardian looks at the board, where the doorbell cannot be reached
constexpr size_t kMostFollowing = 32, kMostKnown = 256;

// Without allocating: it is rung where there is no memory, too.
socklen_t doorbell_address(const std::string& name, int guardian, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  const size_t bytes = std::min(name.size(), sizeof address->sun_path - 2);
  std::memcpy(address->sun_path + 1, name.data(), bytes);  // behind a zero: it is no file
  address->sun_path[1 + bytes] = static_cast<char>('0' + guardian);
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 2 + bytes);
}

}  // namespace

Watch::Watch(WatchConfig config, VerdictBoard* board, std::function<bool(int)> left, std::function<void()> tell)
    : config_(std::move(config)),
      board_(board),
      left_(std::move(left)),
      tell_(std::move(tell)),
      no_memory_{config_.rank, Certainty::kCertain, named(config_.rank) + " cannot go on: memory ran out", false},
      heard_(config_.ranks.size()) {
  open();
  const bool any = std::any_of(pidfds_.begin(), pidfds_.end(), [](int fd) { return fd >= 0; });
  if (wake_ < 0 || (!any && known_.empty() && !config_.several_hosts)) return;
  // Signals are for the program's threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error&) {
    // There are too many threads: deadlines are left.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Watch::open() {
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  for (size_t i = 0; i < config_.pids.size(); ++i) {
    const int pid = config_.pids[i];
    pidfds_.push_back(pid == getpid() ? -1 : static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
    if (pid != getpid() && pidfds_.back() < 0 && errno == ESRCH) ended(static_cast<int>(i));
  }
  if (config_.guardian < 0) return;
  lifeline_ = std::make_unique<Lifeline>(config_.links, config_.silence_s);
  doorbell_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_un address;
  const socklen_t bytes = doorbell_address(config_.doorbell, config_.guardian, &address);
  if (doorbell_ >= 0) (void)bind(doorbell_, reinterpret_cast<sockaddr*>(&address), bytes);  // else the others decide late
}

void Watch::stop() {
  stopped_ = true;
  const uint64_t one = 1;
  if (wake_ >= 0) (void)!write(wake_, &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  if (lifeline_) lifeline_->say_goodbye();
  lifeline_.reset();
  for (int fd : pidfds_)
    if (fd >= 0) close(fd);
  pidfds_.clear();
  for (int* fd : {&wake_, &doorbell_}) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
  }
}

void Watch::run() {
  std::vector<pollfd> polled;
  std::vector<Lifeline::News> news;
  while (!stopped_) {
    try {
      if (!attend(consider(), &polled, &news)) return;
    } catch (const std::exception&) {  // there is no memory; there may be some in a moment
      std::this_thread::sleep_for(std::chrono::nanoseconds(kAgainNs));
    }
  }
  try {
    (void)consider();  // what came last is passed on
  } catch (const std::exception&) {
  }
}

// Waits for news and takes them; false if that cannot be done.
bool Watch::attend(int64_t wait_ns, std::vector<pollfd>* polled, std::vector<Lifeline::News>* news) {
  *polled = {{wake_, POLLIN, 0}, {doorbell_, POLLIN, 0}};
  for (int fd : pidfds_) polled->push_back({fd, POLLIN, 0});
  if (lifeline_) lifeline_->add_to(polled);
  if (lifeline_ && wait_ns < 0) wait_ns = kDoorbellNs;
  const int timeout_ms = wait_ns < 0 ? -1 : static_cast<int>(wait_ns / kMillisecond + 1);
  if (poll(polled->data(), polled->size(), timeout_ms) < 0) return errno == EINTR;
  char drained[64];
  for (int i = 0; i < 2; ++i)
    if ((*polled)[i].revents) (void)!read((*polled)[i].fd, drained, sizeof drained);
  for (size_t i = 0; i < pidfds_.size(); ++i)
    if ((*polled)[2 + i].revents) ended(static_cast<int>(i));
  news->clear();
  if (lifeline_) lifeline_->take(&(*polled)[2 + pidfds_.size()], news);
  for (const Lifeline::News& one : *news) hear(one);
  return true;
}

int64_t Watch::consider() {
  Cause verdict;
  if (board_->verdict.get(&verdict)) {
    publish(verdict, false);
    return -1;
  }
  learn_from_board();
  if (known_.empty()) return -1;
  if (lifeline_)
    for (; sent_ < known_.size(); ++sent_) lifeline_->send_up(known_[sent_].cause);
  const Known& cause = best();
  const int64_t left = decide(cause);
  if (left > 0) return left;
  publish(cause.cause, true);
  return passed_on_ ? -1 : kAgainNs;
}

// The first one that does not follow from another one; if it does not say how a rank died, who says so.
const Watch::Known& Watch::best() const {
  const auto first = std::find_if(known_.begin(), known_.end(), [](const Known& one) { return one.cause.certainty != Certainty::kMayFollow; });
  if (first == known_.end()) return known_.front();
  const auto how = std::find_if(first, known_.end(), [first](const Known& one) {
    return one.cause.rank == first->cause.rank && one.cause.certainty == Certainty::kCertain;
  });
  return how == known_.end() ? *first : *how;
}

// How much longer to wait with deciding, in ns.
int64_t Watch::decide(const Known& best) {
  int64_t patience = best.cause.certainty == Certainty::kCertain ? 0 : kPatienceNs;
  if (config_.several_hosts && config_.guardian < 0) patience += kAnswerNs * 3 / 2;
  else if (lifeline_ && lifeline_->has_up()) patience += kAnswerNs;
  return best.since_ns + patience - now_ns();
}

// The first one counts, on this host and, as the root is asked, on all.
void Watch::publish(const Cause& cause, bool is_own) {
  if (passed_on_) return;
  if (board_->verdict.put(cause) && is_own && cause.text != shown_) log(kError, cause.text);
  Cause verdict;
  if (!board_->verdict.get(&verdict)) return;  // another rank is writing, and will tell
  if (lifeline_) lifeline_->send_verdict(verdict);
  passed_on_ = true;
  tell_();
}

void Watch::hear(const Lifeline::News& news) {
  using What = Lifeline::News::What;
  switch (news.what) {
    case What::kCause: return learn(news.cause);
    case What::kVerdict: return publish(news.cause, false);
    case What::kClosed:
      show(named(news.peer) + " has died: its connection was closed");
      return learn({news.peer, Certainty::kHowUnknown, named(news.peer) + " has died: its connection was closed"});
    case What::kSilent:
      return learn({-1, Certainty::kCertain, named_host(news.peer) + " cannot be reached any more: nothing was acknowledged there for " +
                                  show_seconds(static_cast<int64_t>(config_.silence_s * 1e9))});
  }
}

// At once: the launcher may end the job before any rank can raise a verdict.
void Watch::show(const std::string& text) {
  if (board_->verdict.is_there() || board_->shown.exchange(1)) return;
  shown_ = text;
  log(kError, text);
}

void Watch::ended(int local) {
  const int fd = pidfds_[local], rank = config_.ranks[local];
  pidfds_[local] = -1;
  if (!left_(local)) {
    const std::string how = how_ended(fd, config_.pids[local], kills_);
    const std::string text = named(rank) + " has died" + (how.empty() ? "" : ": " + how);
    if (how == "exit status 0") shown_ = text;  // programs may end by os._exit(0); whoever waits for it raises
    else if (config_.several_hosts) show(text);
    learn({rank, Certainty::kCertain, text});
  }
  if (fd >= 0) close(fd);
}

void Watch::learn(Cause cause) {
  const bool known = std::any_of(known_.begin(), known_.end(), [&cause](const Known& one) {
    return one.cause.rank == cause.rank && one.cause.certainty >= cause.certainty;
  });
  // Of many ranks whose MPI fails after a death, the death comes last.
  const size_t most = cause.certainty == Certainty::kMayFollow ? kMostFollowing : kMostKnown;
  if (known || known_.size() >= most || cause.rank >= static_cast<int>(config_.host_of.size())) return;
  known_.push_back({std::move(cause), now_ns()});
}

void Watch::learn_from_board() {
  Cause cause;
  for (size_t i = 0; i < heard_.size(); ++i) {
    if (heard_[i] || !board_->said[i].get(&cause)) continue;
    heard_[i] = true;
    learn(cause);
  }
}

Status Watch::verdict() const {
  Cause cause;
  if (!board_->verdict.get(&cause)) return Status::ok();
  return Status(Code::kPeerLost, cause.text).with(lost_rank(cause.rank, config_.processes));
}

Status Watch::failed(const Status& status, bool is_certain) {
  try {
    say({config_.rank, is_certain ? Certainty::kCertain : Certainty::kMayFollow, named(config_.rank) + " cannot go on: " + status.text(), false});
  } catch (const std::exception&) {
    say(no_memory_);
  }
  if (is_certain || !thread_.joinable()) return status;
  for (const int64_t end = now_ns() + 2 * kPatienceNs; !decided() && now_ns() < end;)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return decided() ? verdict() : status;
}

// Without a thread, where the host's processes cannot be watched, the board is all there is.
void Watch::say(const Cause& cause) {
  board_->said[config_.local].put(cause);
  if (!thread_.joinable()) {
    if (!config_.several_hosts && board_->verdict.put(cause)) tell_();
    return;
  }
  const uint64_t one = 1;
  (void)!write(wake_, &one, sizeof one);
  ring_guardians();
}

void Watch::ring_guardians() const {
  for (int guardian = 0; config_.several_hosts && guardian < 2; ++guardian) {
    const int from = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un to;
    const socklen_t bytes = doorbell_address(config_.doorbell, guardian, &to);
    if (from < 0) return;
    (void)sendto(from, "!", 1, MSG_DONTWAIT | MSG_NOSIGNAL, reinterpret_cast<sockaddr*>(&to), bytes);
    close(from);
  }
}

bool Watch::lost_process() const {
  Cause cause;
  return board_->verdict.get(&cause) && cause.ended;
}

std::string Watch::named(int rank) const {
  std::string text = "rank " + std::to_string(rank);
  if (rank < 0 || rank >= static_cast<int>(config_.processes.size())) return text;
  const Process& process = config_.processes[rank];
  return text + " (process " + std::to_string(process.pid) + " on host " + process.host + ")";
}

std::string Watch::named_host(int rank) const {
  std::vector<int> ranks;
  for (size_t r = 0; r < config_.host_of.size(); ++r)
    if (config_.host_of[r] == config_.host_of[rank]) ranks.push_back(static_cast<int>(r));
  const bool is_named = rank < static_cast<int>(config_.processes.size());
  return (is_named ? "host " + config_.processes[rank].host : "the host") + " (" + show_ranks(ranks) + ")";
}

}  // namespace ringreduce
