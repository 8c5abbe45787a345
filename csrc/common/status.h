// The one status value that every layer below bindings/ returns. It carries a kind, a
// message, and the chain of causes that led to it; bindings/ turns it into an exception.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ringreduce {

enum class Code {
  kOk,
  kInvalid,      // the caller's mistake: ValueError
  kUnsupported,  // the caller asked for what this build or platform lacks: ValueError
  kMismatch,     // ranks disagree about an operation
  kPeerLost,     // a rank died or shut down
  kTimeout,      // a deadline passed
  kShutdown,     // this rank shut down, or never started
  kPlanLeft,     // a rank has left a gradient plan; all else goes on
  kSystem,       // the operating system, MPI or NCCL reported an error
};

// The rank that is lost, for Code::kPeerLost.
struct Lost {
  int rank = -1;     // of the world; -1: none in particular
  int pid = 0;       // 0: unknown
  std::string host;  // "": unknown
};

struct Process {  // of a rank, as texts name it
  int pid = 0;
  std::string host;
};

// `processes`: by world rank; empty: unknown.
inline Lost lost_rank(int rank, const std::vector<Process>& processes) {
  if (rank < 0 || rank >= static_cast<int>(processes.size())) return {rank, 0, ""};
  return {rank, processes[rank].pid, processes[rank].host};
}

class [[nodiscard]] Status {
 public:
  Status() = default;  // success; costs one null pointer
  Status(Code code, std::string message)
      : node_(std::make_shared<Node>(Node{code, std::move(message), nullptr, nullptr})) {}

  static Status ok() { return Status(); }
  bool is_ok() const { return node_ == nullptr; }
  explicit operator bool() const { return is_ok(); }
  Code code() const { return node_ ? node_->code : Code::kOk; }

  // The same failure seen from one level up: `message` is put before what happened below.
  Status because(std::string message) const {
    if (is_ok()) return *this;
    Status outer(code(), std::move(message));
    outer.node_->cause = node_;
    return outer;
  }

  Status with(Lost lost) const {
    Status same = *this;
    same.node_ = std::make_shared<Node>(*node_);
    same.node_->lost = std::make_shared<const Lost>(std::move(lost));
    return same;
  }
  const Lost* lost() const {
    for (const Node* node = node_.get(); node; node = node->cause.get())
      if (node->lost) return node->lost.get();
    return nullptr;
  }

  // "what failed: why: why below that".
  std::string text() const {
    std::string all;
    for (const Node* node = node_.get(); node; node = node->cause.get()) {
      if (!all.empty()) all += ": ";
      all += node->message;
    }
    return all;
  }

 private:
  struct Node {
    Code code;
    std::string message;
    std::shared_ptr<Node> cause;
    std::shared_ptr<const Lost> lost;
  };
  std::shared_ptr<Node> node_;
};

#define RR_TRY(expression)                                 \
  do {                                                     \
    ::ringreduce::Status rr_status = (expression);         \
    if (!rr_status.is_ok()) return rr_status;              \
  } while (false)

}  // namespace ringreduce
