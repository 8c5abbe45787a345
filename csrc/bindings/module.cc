// The Python module ringreduce._core. Converts arguments, releases the GIL, calls, and turns a
// Status into an exception; no logic. ringreduce/_core.pyi is its documentation.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <pthread.h>

#include <algorithm>
#include <climits>
#include <map>

#include "bindings/support.h"
#include "bindings/tensor.h"
#include "common/deadline.h"
#include "common/log.h"
#include "engine/wire_format.h"
#include "net/mpi_net.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ringreduce {
namespace {

void bind_segment(nb::module_& m) {
  nb::class_<Segment>(m, "Segment")
      .def_static("create", [](const std::string& kind, size_t bytes, size_t reserve) {
        std::shared_ptr<Segment> segment;
        raise_if(without_gil([&] {
          return Segment::create(kind == "posix" ? Segment::Backing::kPosix : Segment::Backing::kMemfd, bytes, reserve, &segment);
        }));
        return segment;
      }, "kind"_a, "nbytes"_a, "reserve"_a)
      .def_static("open", [](const nb::tuple& offer, size_t bytes) {
        std::shared_ptr<Segment> segment;
        const SegmentOffer at{nb::cast<std::string>(offer[0]), nb::cast<uint64_t>(offer[1]), nb::cast<uint64_t>(offer[2]),
                                nb::cast<uint64_t>(offer[3])};
        raise_if(without_gil([&] { return Segment::open(at, bytes, &segment); }));
        return segment;
      }, "offer"_a, "nbytes"_a)
      .def_prop_ro("offer", [](const Segment& s) {
        return nb::make_tuple(s.offer().path, s.offer().device, s.offer().inode, s.offer().secret);
      })
      .def("reserve", [](const Segment& self, size_t offset, size_t bytes) {
        raise_if(without_gil([&] { return self.reserve(offset, bytes); }));
      }, "offset"_a, "nbytes"_a)
      .def_prop_ro("path", [](const Segment& s) { return s.path(); })
      .def_prop_ro("nbytes", [](const Segment& s) { return s.size(); })
      .def("unlink", &Segment::unlink);
}

// What init() needs to begin with.
void bind_start(nb::module_& m) {
  m.def("wire_format", &wire_format);
  m.def("offer_memory", [] {
    const PeerMemory::Word word = PeerMemory::offer();
    return std::make_pair(word.address, word.value);
  });
  m.def("read_memory", [](int pid, std::pair<uint64_t, uint64_t> word) {
    const Status status = without_gil([&] { return PeerMemory::attempt(pid, {word.first, word.second}); });
    return status.text();
  }, "pid"_a, "word"_a);
  nb::class_<Deadline>(m, "Deadline")
      .def("__init__", [](Deadline* self, double seconds, std::string message,
                          const std::vector<std::pair<double, std::vector<std::string>>>& questions) {
        std::vector<Deadline::Question> asked;
        for (const auto& [after, command] : questions) asked.push_back({after, command});
        new (self) Deadline(seconds, std::move(message), std::move(asked));
      }, "seconds"_a, "message"_a, "questions"_a)
      .def("say", &Deadline::say, "message"_a)
      .def("cancel", &Deadline::cancel, nb::call_guard<nb::gil_scoped_release>());
}

// RankLostError has attributes: rank, pid, host; None for what is not known.
void bind_rank_lost(nb::module_& m, nb::handle base) {
  static nb::handle type = nb::exception<CoreRankLost>(m, "RankLostError", base);
  for (const char* name : {"rank", "pid", "host"}) type.attr(name) = nb::none();
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const CoreRankLost& error) {
      const nb::object object = type(error.what());
      if (error.lost.rank >= 0) object.attr("rank") = error.lost.rank;
      if (error.lost.pid) object.attr("pid") = error.lost.pid;
      if (!error.lost.host.empty()) object.attr("host") = nb::cast(error.lost.host);
      PyErr_SetObject(type.ptr(), object.ptr());
    }
  });
}

void bind_engine(nb::module_& m) {
  nb::class_<PyEngine> c(m, "Engine");
  c.def("__init__", [](PyEngine* self, int rank, int size, std::vector<int> host_of, std::shared_ptr<Segment> segment,
                       uintptr_t mpi_comm, bool oversubscribed, std::vector<int> peer_pids, std::vector<std::pair<int, std::string>> processes,
                       std::tuple<int, std::string, std::vector<std::tuple<int, int, bool>>> lifeline, bool spare_cores,
                       bool single_copy) {
    EngineConfig config;
    config.rank = rank;
    config.size = size;
    config.host_of = std::move(host_of);
    config.segment = std::move(segment);
    config.oversubscribed = oversubscribed;
    config.spare_cores = spare_cores;
    config.peer_pids = std::move(peer_pids);
    for (auto& [pid, host] : processes) config.processes.push_back({pid, std::move(host)});
    config.guardian = std::get<0>(lifeline);
    config.doorbell = std::get<1>(lifeline);
    for (const auto& [fd, peer, up] : std::get<2>(lifeline)) config.links.push_back({fd, peer, up});
    config.single_copy = single_copy;
    config.settings = settings();
    set_log_rank(rank);
    if (mpi_comm) raise_if(make_mpi_net(mpi_comm, &config.net));
    raise_if(Engine::check(config));
    new (self) PyEngine(std::move(config));
  }, "rank"_a, "size"_a, "host_of"_a, "segment"_a, "mpi_comm"_a, "oversubscribed"_a, "peer_pids"_a, "processes"_a, "lifeline"_a,
     "spare_cores"_a = false, "single_copy"_a = false);
  c.def("failed", [](PyEngine& self) {
    Engine& engine = self.get();
    return without_gil([&] { return engine.failed(); });
  });
  c.def("lost", [](PyEngine& self) {
    Engine& engine = self.get();
    return readable(without_gil([&] { return engine.lost(); }).text());
  });
  c.def("close", [](PyEngine& self, double timeout, const std::string& why) {
    Engine& engine = self.get();
    without_gil([&] { engine.close(timeout, why); });
    release_kept();
  }, "timeout"_a, "why"_a = "");
  c.def_static("segment_bytes", [](const std::vector<int>& host_of, int host) {
    std::map<int, int> ranks_on;
    for (int at : host_of) ++ranks_on[at];
    int rails = INT_MAX;
    for (const auto& [at, ranks] : ranks_on) rails = std::min(rails, ranks);
    const size_t chunk = settings().chunk(static_cast<int>(ranks_on.size()), rails);
    const int locals = std::max(1, ranks_on[host]);
    return std::make_pair(ProcessSet::segment_bytes(locals, chunk), ProcessSet::reserved_bytes(locals, chunk));
  }, "host_of"_a, "host"_a);
  c.def("add_set", [](PyEngine& self, int set_id, const std::vector<int>& ranks, std::shared_ptr<Segment> segment) {
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.add_set(set_id, ranks, std::move(segment)); }));
  }, "set_id"_a, "ranks"_a, "segment"_a);
  c.def("set_idle", [](PyEngine& self, int set_id) {
    Engine& engine = self.get();
    return without_gil([&] { return engine.set_idle(set_id); });
  }, "set_id"_a);
  c.def("remove_set", [](PyEngine& self, int set_id) {
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.remove_set(set_id); }));
  }, "set_id"_a);
  c.def("offer_channel", [](PyEngine& self) {
    Engine& engine = self.get();
    return without_gil([&] { return engine.offer_channel(); });
  });
  c.def("state", [](PyEngine& self) {
    Engine& engine = self.get();
    return without_gil([&] { return engine.state(); });
  });
  bind_submissions(c);
  bind_message_calls(c);
  bind_gpu_engine(c);
  bind_status_engine(c);
}

}  // namespace
}  // namespace ringreduce

NB_MODULE(_core, m) {
  using namespace ringreduce;
  // Gradients that live in the arena may outlast the interpreter: no leak of ours.
  nb::set_leak_warnings(false);
  nb::exception<CoreError> error(m, "RingreduceError", PyExc_RuntimeError);
  nb::exception<CoreTimeout>(m, "RingreduceTimeoutError", error.ptr());
  nb::exception<CorePlanLeft>(m, "PlanLeftError", error.ptr());
  bind_rank_lost(m, error);
  pthread_atfork(nullptr, nullptr, [] { fork_count.fetch_add(1); });
  nb::list names;
  for (int i = 0; i < kDTypeCount; ++i) names.append(nb::str(info(static_cast<DType>(i)).name));
  m.attr("DTYPES") = nb::tuple(names);
  nb::list ops;
  for (const ReduceOpInfo& op : kReduceOps) {
    nb::list meaningless;
    for (int i = 0; i < kDTypeCount; ++i)
      if (!has_meaning(op, static_cast<DType>(i))) meaningless.append(names[i]);
    ops.append(nb::make_tuple(op.name, op.op, nb::tuple(meaningless)));
  }
  m.attr("SMALL_BYTES") = kSmallBytes;
  m.attr("REDUCE_OPS") = nb::tuple(ops);
  m.def("kernels_name", [] { return std::string(kernels_name()); });
  m.def("load_settings", [] {
    reload_settings();
    if (!settings_error().empty()) throw nb::value_error(settings_error().c_str());
    nb::list agree;
    for (const SettingInfo& one : setting_infos())
      if (one.agrees) agree.append(nb::make_tuple(one.name, one.value));
    return nb::tuple(agree);
  });
  m.def("setting_texts", [] {
    std::vector<std::pair<std::string, std::string>> texts;
    for (const SettingInfo& one : setting_infos()) texts.emplace_back(one.name, one.value);
    return texts;
  });
  m.def("setting_table", [] {
    nb::list table;
    for (const SettingInfo& one : setting_infos()) table.append(nb::make_tuple(one.name, one.standard, one.allowed, one.agrees));
    return table;
  });
  m.def("log", [](int level, const std::string& message) { log(level, message); }, "level"_a, "message"_a);
  m.def("use_exchange_api", &use_exchange_api, "tensor_type"_a);
  bind_segment(m);
  bind_start(m);
  bind_op(m);
  bind_messages(m);
  bind_engine(m);
  bind_gpu(m);
  bind_plans(m);
  bind_digest(m);
  bind_status(m);
}
