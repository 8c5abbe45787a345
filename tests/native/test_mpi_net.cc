// MpiNet without MPI: over a make-believe library whose messages travel through the loopback
// transport and whose handles are integers (as MPICH's) or pointers (as Open MPI's). The real
// libraries are what the parallel suite runs on; here are the cases they do not give at will:
// pieces of a few bytes, failures in the middle of a message, a receive that cannot be ended.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"
#include "loopback_net.h"
#include "net/mpi_net.h"

using namespace ringreduce;

namespace {

// The state of the make-believe library. A request's handle is its number; a communicator's
// is the number of the rank that uses it plus one.
struct FakeMpi {
  explicit FakeMpi(LoopbackOptions options = {}) : world(2, options), ends{world.net(0), world.net(1)} {}
  struct Entry {
    Net* net;
    Request request;
  };
  LoopbackWorld world;
  std::unique_ptr<Net> ends[2];
  std::vector<Entry> entries{{nullptr, {}}};  // by handle; handle 0 is not used
  std::set<size_t> live;                      // requests that MPI still holds
  std::vector<int> counts;                    // of all transfers started
  int fail_start = -1, fail_test = -1;        // which call to fail, from 0
  int tests = 0, freed = 0, probes = 0;
  bool stuck = false;  // no request ever ends
  int is_finalized = 0;
};
FakeMpi* fake = nullptr;

template <class Handle> Handle to_handle(size_t number) {
  if constexpr (std::is_pointer_v<Handle>) return reinterpret_cast<Handle>(number);
  else return static_cast<Handle>(number);
}
template <class Handle> size_t to_number(Handle handle) {
  if constexpr (std::is_pointer_v<Handle>) return reinterpret_cast<size_t>(handle);
  else return static_cast<size_t>(handle);
}

template <class Handle, class Start>
int fake_start(int count, Handle type, Handle comm, Handle* request, Start start) {
  CHECK_EQ(to_number(type), size_t{0x42});
  if (static_cast<int>(fake->counts.size()) == fake->fail_start) return 17;
  fake->counts.push_back(count);
  FakeMpi::Entry entry{fake->ends[to_number(comm) - 1].get(), {}};
  CHECK_OK(start(entry));
  fake->live.insert(fake->entries.size());
  *request = to_handle<Handle>(fake->entries.size());
  fake->entries.push_back(entry);
  return 0;
}

template <class Handle>
int fake_isend(const void* data, int count, Handle type, int to, int tag, Handle comm, Handle* request) {
  return fake_start(count, type, comm, request, [&](FakeMpi::Entry& entry) {
    return entry.net->isend(to, tag, data, static_cast<size_t>(count), &entry.request);
  });
}

template <class Handle>
int fake_irecv(void* data, int count, Handle type, int from, int tag, Handle comm, Handle* request) {
  return fake_start(count, type, comm, request, [&](FakeMpi::Entry& entry) {
    return entry.net->irecv(from, tag, data, static_cast<size_t>(count), &entry.request);
  });
}

template <class Handle> int fake_test(Handle* request, int* done, void* status) {
  CHECK(status == fake);  // MPI_STATUS_IGNORE
  CHECK_EQ(fake->live.count(to_number(*request)), size_t{1});
  FakeMpi::Entry& entry = fake->entries[to_number(*request)];
  bool over = false;
  const bool fails = fake->tests++ == fake->fail_test || !entry.net->test(&entry.request, &over);
  if (fails || over) fake->live.erase(to_number(*request));
  *done = over && !fake->stuck;
  return fails ? 18 : 0;
}

template <class Handle> int fake_iprobe(int, int tag, Handle, int* found, void*) {
  CHECK_EQ(tag, Net::kMaxTag);  // which no message has
  ++fake->probes;
  return *found = 0;
}

template <class Handle> int fake_cancel(Handle* request) {
  FakeMpi::Entry& entry = fake->entries[to_number(*request)];
  if (!fake->stuck) entry.net->cancel(&entry.request);
  return 0;
}

template <class Handle> int fake_request_free(Handle* request) {
  CHECK_EQ(fake->live.erase(to_number(*request)), size_t{1});
  ++fake->freed;
  return 0;
}

int fake_error_string(int code, char* text, int* length) {
  *length = std::sprintf(text, "error\nnumber %d", code);
  return 0;
}

int fake_finalized(int* flag) {
  *flag = fake->is_finalized;
  return 0;
}

// A fresh library and both ranks' nets over it.
template <class Handle>
struct Setup {
  explicit Setup(LoopbackOptions options = {}) : mpi(options) {
    fake = &mpi;
    const MpiApi<Handle> api{fake_isend<Handle>,        fake_irecv<Handle>, fake_test<Handle>, fake_iprobe<Handle>,
                             fake_cancel<Handle>,       fake_request_free<Handle>, fake_error_string, fake_finalized,
                             to_handle<Handle>(0x42),   fake};
    for (size_t rank = 0; rank < 2; ++rank) nets[rank] = mpi_net_over(api, to_handle<Handle>(rank + 1), kSplit);
  }
  static constexpr size_t kSplit = 4;
  FakeMpi mpi;
  std::unique_ptr<Net> nets[2];
};

bool test_once(Net* net, Request* request) {
  bool done = false;
  CHECK_OK(net->test(request, &done));
  return done;
}

template <class Handle>
void exchange(size_t bytes) {
  Setup<Handle> setup({bytes, 0.5});
  std::string sent(bytes, ' '), received(bytes, ' ');
  for (size_t i = 0; i < bytes; ++i) sent[i] = static_cast<char>('a' + i % 26);
  for (int round = 0; round < 3; ++round) {  // slots are used again
    Request send, receive;
    CHECK_OK(setup.nets[0]->isend(1, round, sent.data(), bytes, &send));
    CHECK_OK(setup.nets[1]->irecv(0, round, received.data(), bytes, &receive));
    while (!test_once(setup.nets[1].get(), &receive)) {}
    while (!test_once(setup.nets[0].get(), &send)) {}
    CHECK_EQ(received, sent);
    received.assign(bytes, ' ');
  }
  const size_t pieces = bytes == 0 ? 1 : (bytes + setup.kSplit - 1) / setup.kSplit;
  CHECK_EQ(setup.mpi.counts.size(), 6 * pieces);
  for (int count : setup.mpi.counts) CHECK(count <= static_cast<int>(setup.kSplit));
  CHECK(setup.mpi.live.empty());
}

}  // namespace

TEST(mpi_messages_travel_in_pieces_with_either_kind_of_handle) {
  for (size_t bytes : {0, 1, 3, 4, 5, 8, 101}) {
    exchange<int>(bytes);
    exchange<void*>(bytes);
  }
}

TEST(mpi_error_at_the_start_names_function_and_peer_and_leaves_nothing) {
  Setup<int> setup;
  setup.mpi.fail_start = 2;  // the third piece
  char buffer[12];
  Request request;
  const Status status = setup.nets[1]->irecv(0, 6, buffer, sizeof(buffer), &request);
  CHECK_EQ(status.text(), "cannot receive 12 bytes from rank 0, tag 6: MPI_Irecv: error number 17");
  CHECK(status.code() == Code::kSystem && !request.active());
  CHECK_EQ(setup.mpi.counts.size(), size_t{2});  // these were started, and cancelled again
  CHECK(setup.mpi.live.empty());
}

TEST(mpi_error_in_a_test_ends_the_transfer) {
  Setup<void*> setup;
  setup.mpi.fail_test = 1;
  char buffer[12];
  Request request;
  CHECK_OK(setup.nets[1]->irecv(0, 6, buffer, sizeof(buffer), &request));
  CHECK(!test_once(setup.nets[1].get(), &request));
  bool done = false;
  const Status status = setup.nets[1]->test(&request, &done);
  CHECK_EQ(status.text(), "cannot receive 12 bytes from rank 0, tag 6: MPI_Test: error number 18");
  CHECK(done && !request.active());
  CHECK(setup.mpi.live.empty());
}

TEST(mpi_cancelled_receive_leaves_the_message_to_the_next) {
  Setup<int> setup;
  char sent[6] = "hello", unused[6] = "", received[6] = "";
  Request send, given_up, receive;
  CHECK_OK(setup.nets[1]->irecv(0, 0, unused, 6, &given_up));
  setup.nets[1]->cancel(&given_up);
  CHECK(!given_up.active() && setup.mpi.live.empty() && setup.mpi.freed == 0);
  CHECK_OK(setup.nets[0]->isend(1, 0, sent, 6, &send));
  CHECK_OK(setup.nets[1]->irecv(0, 0, received, 6, &receive));
  while (!test_once(setup.nets[1].get(), &receive)) {}
  CHECK_EQ(std::string(received), "hello");
  CHECK_EQ(std::string(unused), "");
}

TEST(mpi_cancel_does_not_wait_for_ever) {
  Setup<int> setup;
  setup.mpi.stuck = true;
  char buffer[4];
  Request request;
  CHECK_OK(setup.nets[1]->irecv(0, 0, buffer, 4, &request));
  setup.nets[1]->cancel(&request);
  CHECK_EQ(setup.mpi.freed, 1);
}

TEST(mpi_net_gives_up_what_is_in_flight_at_its_end_unless_mpi_ended_first) {
  for (int finalized : {0, 1}) {
    Setup<int> setup;
    char buffer[8] = {};
    Request send, receive;
    CHECK_OK(setup.nets[1]->irecv(0, 0, buffer, 8, &receive));
    CHECK_OK(setup.nets[1]->isend(0, 1, buffer, 4, &send));
    setup.mpi.is_finalized = finalized;
    setup.nets[1].reset();
    CHECK_EQ(setup.mpi.live.size(), finalized ? size_t{3} : size_t{0});
    CHECK_EQ(setup.mpi.freed, finalized ? 0 : 1);  // the send
    setup.nets[0].reset();
  }
}

// What MPI says is done may still lie on the sender's side, until MPI is called again.
TEST(mpi_is_called_for_a_while_after_a_long_message_was_sent) {
  Setup<void*> setup;
  std::vector<char> sent(5000), received(5000);
  Request send, receive;
  for (size_t bytes : {size_t{100}, sent.size()}) {
    CHECK_OK(setup.nets[1]->irecv(0, 0, received.data(), bytes, &receive));
    CHECK_OK(setup.nets[0]->isend(1, 0, sent.data(), bytes, &send));
    while (!test_once(setup.nets[1].get(), &receive)) {}
    while (!test_once(setup.nets[0].get(), &send)) {}
    CHECK_EQ(setup.nets[0]->flush(), bytes > 4096);
    CHECK_EQ(setup.nets[1]->flush(), false);  // it has received
  }
  CHECK_EQ(setup.mpi.probes, 1);
}

TEST(mpi_is_not_found_where_there_is_none) {
  std::unique_ptr<Net> net;
  const Status status = make_mpi_net(0, &net);
  CHECK(status.code() == Code::kSystem);
  CHECK(status.text().find("no initialised MPI library") != std::string::npos);
  CHECK(net == nullptr);
}

TEST_MAIN()
