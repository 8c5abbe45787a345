// Status pages, for Python. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/string.h>

#include "bindings/support.h"

using namespace nb::literals;

namespace ringreduce {

namespace {

PyObject* place_finder = nullptr;  // kept for good, as a wait may outlast the module

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
  return page;
}

nb::list to_list(const std::vector<StatusReading>& readings) {
  nb::list pages;
  for (const StatusReading& reading : readings) pages.append(to_dict(reading));
  return pages;
}

}  // namespace

std::string place_of_call() {
  if (!place_finder) return "";
  const nb::object place = nb::steal(PyObject_CallNoArgs(place_finder));
  const char* text = place.is_valid() ? PyUnicode_AsUTF8AndSize(place.ptr(), nullptr) : nullptr;
  return text ? text : (PyErr_Clear(), "");
}

void bind_status(nb::module_& m) {
  m.def("set_place_finder", [](nb::object finder) { place_finder = finder.release().ptr(); }, "finder"_a);
}

void bind_status_engine(nb::class_<PyEngine>& c) {
  c.def("statuses", [](PyEngine& self) {
    Engine& engine = self.get();
    return to_list(without_gil([&] { return engine.statuses(); }));
  });
  c.def("count_step", [](PyEngine& self) {
    Engine& engine = self.get();
    without_gil([&] { engine.count_step(); });
  });
}

}  // namespace ringreduce
