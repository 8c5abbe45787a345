// FaultNet: every transfer has an entry here, which says what is wrong with it, if anything.
#include "fault_net.h"

namespace ringreduce {

FaultNet::FaultNet(std::unique_ptr<Net> inner, std::vector<Fault> faults)
    : inner_(std::move(inner)), faults_(std::move(faults)) {}

const Fault* FaultNet::next_fault(Fault::Direction direction) {
  const int64_t place_any = sends_ + receives_;
  const int64_t place = direction == Fault::Direction::kSend ? sends_++ : receives_++;
  for (const Fault& fault : faults_) {
    if (fault.direction != direction && fault.direction != Fault::Direction::kAny) continue;
    const int64_t since = (fault.direction == Fault::Direction::kAny ? place_any : place) - fault.nth;
    if (since >= 0 && since < fault.count) return &fault;
  }
  return nullptr;
}

template <class Start>
Status FaultNet::start(Fault::Direction direction, Request* request, Start start_inner, int tag, char* data, size_t bytes) {
  const Fault* fault = next_fault(direction);
  if (fault && fault->action == Fault::Action::kRefuse) return fault->status;
  Transfer transfer{{}, Fault::Action::kDelay, 0, {}, {}};  // no fault: a delay of nothing
  if (fault && fault->action == Fault::Action::kCorrupt)
    transfer.corrupt = [fault, tag, data, bytes] { if (data) fault->corrupt(tag, data, bytes); };
  else if (fault) transfer = {{}, fault->action, fault->tests, fault->status, {}};
  if (transfer.action == Fault::Action::kDelay) RR_TRY(start_inner(&transfer.inner));
  request->id = next_id_++;
  transfers_.emplace(request->id, transfer);
  return Status::ok();
}

Status FaultNet::isend(int to, int tag, const void* data, size_t bytes, Request* request) {
  return start(Fault::Direction::kSend, request,
               [&](Request* inner) { return inner_->isend(to, tag, data, bytes, inner); });
}

Status FaultNet::irecv(int from, int tag, void* data, size_t bytes, Request* request) {
  return start(Fault::Direction::kReceive, request,
               [&](Request* inner) { return inner_->irecv(from, tag, data, bytes, inner); }, tag, static_cast<char*>(data), bytes);
}

Status FaultNet::test(Request* request, bool* done) {
  *done = !request->active();
  if (*done) return Status::ok();
  const auto found = transfers_.find(request->id);
  if (found == transfers_.end()) return Status(Code::kInvalid, "a request is tested that is not in flight");
  Transfer& transfer = found->second;
  Status result;
  switch (transfer.action) {
    case Fault::Action::kDelay:
      if (transfer.tests > 0) {
        --transfer.tests;
        return Status::ok();
      }
      result = inner_->test(&transfer.inner, done);
      if (!*done && result) return result;
      if (*done && result && transfer.corrupt) transfer.corrupt();
      break;
    case Fault::Action::kFail:
    case Fault::Action::kRefuse:
    case Fault::Action::kCorrupt:
      result = transfer.status;
      break;
    case Fault::Action::kDrop:
      return Status::ok();
  }
  // Over, one way or the other.
  transfers_.erase(found);
  *request = Request{};
  *done = true;
  return result;
}

void FaultNet::cancel(Request* request) {
  const auto found = transfers_.find(request->id);
  if (found != transfers_.end()) {
    inner_->cancel(&found->second.inner);
    transfers_.erase(found);
  }
  *request = Request{};
}

}  // namespace ringreduce
