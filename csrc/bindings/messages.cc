// Messages from rank to rank, for Python. No logic.
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "bindings/support.h"
#include "bindings/tensor.h"

using namespace nb::literals;

namespace ringreduce {

namespace {

struct PyMessage {
  PyEngine* engine;
  MessageRef message;
  nb::object owner;  // keeps `engine` alive
};

void wait(Engine& engine, const Message& message, double timeout, int64_t since_ns) {
  wait_with_signals(engine, [&](double slice, bool* done, Waiting* waiting) { return engine.wait(message, timeout, slice, done, since_ns, waiting); },
                    [&] { return engine.missing(message); }, timeout >= 0);
}

// Of a plain tensor, until it is done; null for any other.
MessageRef pass_plain(PyEngine& self, int set_id, bool is_send, nb::handle tensor, nb::handle peer, nb::handle tag) {
  PlainTensor plain;
  MessageSpec spec;
  spec.is_send = is_send;
  const bool any = !is_send && peer.is_none();
  if (!(any || read_int(peer, 0, &spec.peer)) || !read_int(tag, 0, &spec.tag) || !read_plain_tensor(tensor, &plain)) return nullptr;
  spec.dtype = plain.dtype;
  spec.data = plain.data;
  spec.bytes = plain.bytes;
  Engine& engine = self.get();
  MessageRef message;
  try {
    raise_if(without_gil([&] { return engine.post(set_id, std::move(spec), false, &message); }));
    release_kept();
    if (!message->is_done()) wait(engine, *message, -1, 0);
  } catch (...) {  // until here the caller has kept it
    std::shared_ptr<void> kept = message ? keep(tensor) : nullptr;
    if (message) without_gil([&] { if (!engine.take_back(message)) engine.keep(message, std::move(kept)); });
    throw;
  }
  raise_if(message->status);
  return message;
}

PyMessage post(nb::handle_t<PyEngine> self, int set_id, bool is_send, size_t data, size_t count, int dtype,
               std::optional<int> peer, int tag, nb::handle kept, bool wake) {
  if (dtype < 0 || dtype >= kDTypeCount) throw nb::value_error("dtype code out of range");
  MessageSpec spec;
  spec.is_send = is_send;
  spec.dtype = static_cast<DType>(dtype);
  spec.data = static_cast<char*>(pointer(data));
  spec.bytes = count * info(spec.dtype).size;
  spec.peer = peer.value_or(MessageSpec::kAnySource);
  spec.tag = tag;
  spec.keep = keep(kept);
  PyEngine* engine = nb::inst_ptr<PyEngine>(self);
  Engine& target = engine->get();
  PyMessage message{engine, nullptr, nb::borrow(self)};
  const Status status = without_gil([&] { return target.post(set_id, std::move(spec), wake, &message.message); });
  release_kept();
  raise_if(status);
  return message;
}

}  // namespace

void bind_messages(nb::module_& m) {
  nb::class_<PyMessage> c(m, "Message");
  c.def("done", [](const PyMessage& self) {
    release_kept();
    return self.message->is_done();
  });
  c.def("wait", [](const PyMessage& self, std::optional<double> timeout) {
    if (!self.message->is_done()) wait(self.engine->get(), *self.message, timeout.value_or(-1), timeout ? now_ns() : 0);
    release_kept();
    raise_if(self.message->status);
  }, "timeout"_a = nb::none());
  c.def("take_back", [](const PyMessage& self) {
    Engine& engine = self.engine->get();
    const bool taken = without_gil([&] { return engine.take_back(self.message); });
    release_kept();
    return taken;
  });
  c.def("renew", [](const PyMessage& self) { self.message->renew(); });
  c.def_prop_ro("peer", [](const PyMessage& self) { return self.message->peer; });
  c.def_prop_ro("on_gpu", [](const PyMessage&) { return false; });
}

void bind_message_calls(nb::class_<PyEngine>& c) {
  c.def("post", &post, "set_id"_a, "is_send"_a, "data"_a, "count"_a, "dtype"_a, "peer"_a.none(), "tag"_a, "keep"_a, "wake"_a);
  c.def("send_plain", [](PyEngine& self, int set_id, nb::handle tensor, nb::handle dest, nb::handle tag) {
    return pass_plain(self, set_id, true, tensor, dest, tag) != nullptr;
  }, "set_id"_a, "tensor"_a.none(), "dest"_a.none(), "tag"_a.none());
  c.def("recv_plain", [](PyEngine& self, int set_id, nb::handle tensor, nb::handle source, nb::handle tag) {
    const MessageRef message = pass_plain(self, set_id, false, tensor, source, tag);
    return message ? std::optional<int>(message->peer) : std::nullopt;
  }, "set_id"_a, "tensor"_a.none(), "source"_a.none(), "tag"_a.none());
  c.def("message_counts", [](PyEngine& self, int set_id) {
    Engine& engine = self.get();
    const Mailboxes::Counts counts = without_gil([&] { return engine.message_counts(set_id); });
    return std::make_pair(counts.sent, counts.received);
  }, "set_id"_a);
}

}  // namespace ringreduce
