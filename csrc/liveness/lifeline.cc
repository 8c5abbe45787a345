#include "liveness/lifeline.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/hash.h"
#include "common/log.h"
#include "common/show.h"

namespace ringreduce {

namespace {

constexpr uint32_t kMagic = 0x72724c31;

struct Header {
  uint32_t magic, type, certainty, bytes;
  int32_t rank;
  uint32_t ended;
  uint64_t checksum;  // of all of it but this, and of the text
};

uint64_t checksum(const Header& header, const char* text) {
  return Hasher().add_bytes(&header, offsetof(Header, checksum)).add_bytes(text, header.bytes).value();
}

void set(int fd, int level, int option, int value) { (void)setsockopt(fd, level, option, &value, sizeof value); }

// A stopped process still acknowledges, and a cut that is shorter is survived. An idle connection is asked every second.
void give_up_after(int fd, double seconds) {
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, static_cast<int>(std::clamp(seconds, 1.0, 127.0)));  // TCP_USER_TIMEOUT goes before it
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(std::min(seconds, 2e6) * 1e3));
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

// A forked child would keep a connection open that its parent's death is to close.
constexpr int kMostOpen = 2 * 1024 + 2;  // of the widest tree
std::atomic<int> open_fds[kMostOpen];  // fd + 1

void close_in_child() {
  for (std::atomic<int>& fd : open_fds)
    if (const int open = fd.exchange(0)) ::close(open - 1);
}

void remember(int fd) {
  static const int registered = pthread_atfork(nullptr, nullptr, close_in_child);
  (void)registered;
  for (std::atomic<int>& one : open_fds) {
    int none = 0;
    if (one.compare_exchange_strong(none, fd + 1)) return;
  }
}

void forget(int fd) {
  for (std::atomic<int>& one : open_fds) {
    int known = fd + 1;
    if (one.compare_exchange_strong(known, 0)) return;
  }
}

bool is_silence(int error) { return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH; }

}  // namespace

Lifeline::Lifeline(const std::vector<Link>& links, double silence_s) {
  for (const Link& link : links) {
    give_up_after(link.fd, silence_s);
    fcntl(link.fd, F_SETFL, fcntl(link.fd, F_GETFL) | O_NONBLOCK);
    remember(link.fd);
    links_.push_back({});
    static_cast<Link&>(links_.back()) = link;
  }
}

Lifeline::~Lifeline() {
  for (Open& link : links_) close(link);
}

void Lifeline::close(Open& link) {
  if (link.fd < 0) return;
  forget(link.fd);
  ::close(link.fd);
  link.fd = -1;
}

bool Lifeline::has_up() const {
  return std::any_of(links_.begin(), links_.end(), [](const Open& link) { return link.up && link.fd >= 0; });
}

void Lifeline::send_up(const Cause& cause) {
  for (Open& link : links_)
    if (link.up) send(link, Type::kCause, cause);
}

void Lifeline::send_verdict(const Cause& cause) {
  for (Open& link : links_) send(link, Type::kVerdict, cause);
}

void Lifeline::say_goodbye() {
  for (Open& link : links_) send(link, Type::kGoodbye, {});
}

void Lifeline::send(Open& link, Type type, const Cause& cause) {
  if (link.fd < 0) return;
  const std::string text = cut(cause.text, Cause::kText);
  Header header{};
  header.magic = kMagic;
  header.type = static_cast<uint32_t>(type);
  header.certainty = static_cast<uint32_t>(cause.certainty);
  header.bytes = static_cast<uint32_t>(text.size());
  header.rank = cause.rank;
  header.ended = cause.ended;
  header.checksum = checksum(header, text.data());
  link.out.append(reinterpret_cast<const char*>(&header), sizeof header).append(text);
  flush(link);
}

// What is lost with a connection that breaks is told by take().
void Lifeline::flush(Open& link) {
  while (!link.out.empty()) {
    const ssize_t sent = ::send(link.fd, link.out.data(), link.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return;
    link.out.erase(0, static_cast<size_t>(sent));
  }
}

void Lifeline::add_to(std::vector<pollfd>* polled) const {
  for (const Open& link : links_)
    polled->push_back({link.fd, static_cast<short>(link.out.empty() ? POLLIN : POLLIN | POLLOUT), 0});
}

void Lifeline::take(const pollfd* polled, std::vector<News>* news) {
  for (size_t i = 0; i < links_.size(); ++i) {
    if (links_[i].fd < 0 || !polled[i].revents) continue;
    if (polled[i].revents & POLLOUT) flush(links_[i]);
    if (polled[i].revents & ~POLLOUT) receive(links_[i], news);
  }
}

void Lifeline::receive(Open& link, std::vector<News>* news) {
  char bytes[4096];
  for (;;) {
    const ssize_t got = recv(link.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    const int error = got < 0 ? errno : 0;
    if (error == EINTR) continue;
    if (error == EAGAIN || error == EWOULDBLOCK) return;
    if (got > 0) {
      link.in.append(bytes, static_cast<size_t>(got));
      if (!parse(link, news)) log(kWarning, "rank " + std::to_string(link.peer) + " has sent what is no news: its lifeline is closed");
      else if (link.fd >= 0) continue;
      return close(link);
    }
    news->push_back({is_silence(error) ? News::What::kSilent : News::What::kClosed, link.peer, {}});
    return close(link);
  }
}

bool Lifeline::parse(Open& link, std::vector<News>* news) {
  Header header;
  while (link.in.size() >= sizeof header) {
    std::memcpy(&header, link.in.data(), sizeof header);
    const bool is_one = header.magic == kMagic && header.certainty <= static_cast<uint32_t>(Certainty::kCertain);
    if (!is_one || header.bytes > Cause::kText) return false;
    if (link.in.size() < sizeof header + header.bytes) return true;
    const char* text = link.in.data() + sizeof header;
    if (header.checksum != checksum(header, text)) return false;
    const Cause cause{header.rank, static_cast<Certainty>(header.certainty), std::string(text, header.bytes), header.ended != 0};
    link.in.erase(0, sizeof header + header.bytes);
    switch (static_cast<Type>(header.type)) {
      case Type::kCause:
        if (link.up) return false;
        news->push_back({News::What::kCause, link.peer, cause});
        break;
      case Type::kVerdict: news->push_back({News::What::kVerdict, link.peer, cause}); break;
      case Type::kGoodbye: close(link); return true;
      default: return false;
    }
  }
  return true;
}

}  // namespace ringreduce
