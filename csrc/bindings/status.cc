// Status pages, for Python. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/support.h"

using namespace nb::literals;

namespace ringreduce {

namespace {

PyObject* watcher = nullptr;  // kept for good, as a wait may outlast the module

const char* name_of(RankState state) {
  switch (state) {
    case RankState::kRunning: return "running";
    case RankState::kFailed: return "failed";
    case RankState::kClosing: return "shutting down";
    case RankState::kGone: return "gone";
    default: return "unknown";
  }
}

const char* name_of(WaitRecord::What what) {
  switch (what) {
    case WaitRecord::What::kOperation: return "operation";
    case WaitRecord::What::kMessage: return "message";
    case WaitRecord::What::kBucket: return "bucket";
    default: return "unknown";
  }
}

template <size_t N>
std::string shown(const PageText<N>& text) {
  return readable(text.get());
}

nb::dict to_dict(const StatusReading& reading) {
  nb::list waits;
  for (int i = 0; i < reading.waits_shown(); ++i) {
    const WaitRecord& wait = reading.waits[i];
    nb::dict one;
    one["what"] = name_of(wait.what);
    one["set"] = wait.set;
    one["since_ns"] = wait.since_ns;
    one["title"] = shown(wait.title);
    one["place"] = shown(wait.place);
    waits.append(one);
  }
  nb::dict page;
  page["rank"] = reading.rank;
  page["pid"] = reading.pid;
  page["state"] = name_of(reading.state);
  page["since_ns"] = reading.since_ns;
  page["steps"] = reading.steps;
  page["submitters"] = reading.submitters;
  page["blocked"] = reading.blocked;
  page["waits"] = waits;
  page["last"] = shown(reading.last);
  page["failure"] = shown(reading.failure);
  page["verdict"] = shown(reading.verdict);
  page["verdict_ns"] = reading.verdict_ns;
  return page;
}

nb::list to_list(const std::vector<StatusReading>& readings) {
  nb::list pages;
  for (const StatusReading& reading : readings) pages.append(to_dict(reading));
  return pages;
}

// A method of the watcher, which returns a text. What goes wrong there is no matter of the wait, but for an interrupt.
template <typename... Arguments>
std::string ask(const char* method, const Arguments&... arguments) {
  try {
    return nb::cast<std::string>(nb::handle(watcher).attr(method)(arguments...));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    error.discard_as_unraisable(method);
  }
  return "";
}

}  // namespace

std::string place_of_call() {
  return watcher ? ask("place") : "";
}

void report_stall(const Waiting& waiting, const Missing& missing) {
  if (watcher) (void)ask("stalled", waiting.title(), waiting.age_s(), missing.ranks, missing.elsewhere, missing.text);
}

Status explain_late(const Status& late, const Waiting& waiting, const Missing& missing) {
  const std::string verdict =
      watcher ? ask("late", waiting.title(), waiting.age_s(), missing.ranks, missing.elsewhere, missing.text) : "";
  return verdict.empty() ? late : Status(late.code(), late.text() + "\n" + verdict);
}

void bind_status(nb::module_& m) {
  m.def("statuses", [](const Segment& world, int ranks) {
    if (ranks < 0 || world.size() < ProcessSet::segment_bytes(ranks, 0)) throw nb::value_error("ranks: more than the segment has");
    return to_list(Engine::statuses(world, ranks));
  }, "world"_a, "ranks"_a);
  m.def("set_watcher", [](nb::object object) { watcher = object.release().ptr(); }, "watcher"_a);
}

void bind_status_engine(nb::class_<PyEngine>& c) {
  c.def("statuses", [](PyEngine& self) {
    Engine& engine = self.get();
    return to_list(without_gil([&] { return engine.statuses(); }));
  });
  c.def("claim_report", [](PyEngine& self, bool timed_out, double seconds) {
    Engine& engine = self.get();
    Claim claim;
    const ReportKind kind = timed_out ? ReportKind::kTimeout : ReportKind::kStall;
    const bool own = without_gil([&] { return engine.claim_report(kind, seconds, &claim); });
    return std::make_tuple(own, claim.rank, claim.since_ns);
  }, "timed_out"_a, "seconds"_a);
  c.def("say_verdict", [](PyEngine& self, const std::string& verdict) {
    Engine& engine = self.get();
    without_gil([&] { engine.say_verdict(verdict); });
  }, "verdict"_a);
  c.def("count_step", [](PyEngine& self) {
    Engine& engine = self.get();
    without_gil([&] { engine.count_step(); });
  });
}

}  // namespace ringreduce
