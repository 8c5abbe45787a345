// What the parts of the Python module share: errors, the engine that knows of forks, waiting that
// heeds signals, operations.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <atomic>
#include <memory>
#include <stdexcept>

#include "bindings/keep.h"
#include "common/clock.h"
#include "engine/engine.h"

namespace nb = nanobind;

namespace ringreduce {

// What bindings throw for a Status; translated to RingreduceError unless the caller is at fault.
struct CoreError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A deadline passed: unlike after any other failure, the operation is still in flight.
struct CoreTimeout : CoreError {
  using CoreError::CoreError;
};

// A rank has died, or has shut down while others wait for it.
struct CoreRankLost : CoreError {
  using CoreError::CoreError;
};

// A rank has left a gradient plan; the engine goes on.
struct CorePlanLeft : CoreError {
  using CoreError::CoreError;
};

inline std::atomic<int> fork_count{0};

// With what is no UTF-8 replaced: other ranks have a part in texts, and Python takes no other. With the GIL.
inline std::string readable(const std::string& text) {
  const nb::object decoded = nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
  const char* again = decoded.is_valid() ? PyUnicode_AsUTF8AndSize(decoded.ptr(), nullptr) : nullptr;
  return again ? again : (PyErr_Clear(), "the text of an error cannot be shown");
}

inline void raise_if(const Status& status) {
  if (status.is_ok()) return;
  const std::string text = readable(status.text());
  switch (status.code()) {
    case Code::kInvalid:
    case Code::kUnsupported: throw nb::value_error(text.c_str());
    case Code::kTimeout: throw CoreTimeout(text);
    case Code::kPlanLeft: throw CorePlanLeft(text);
    case Code::kPeerLost: throw CoreRankLost(text);
    default: throw CoreError(text);
  }
}

// An engine does not survive a fork: its thread and its place in the table are the parent's.
class PyEngine {
 public:
  PyEngine(EngineConfig config) : engine_(new Engine(std::move(config))), born_(fork_count.load()) {}
  ~PyEngine() {
    if (born_ != fork_count.load()) {
      (void)engine_.release();  // not ours to end
    } else if (nb::is_alive()) {
      nb::gil_scoped_release release;
      engine_.reset();
    }
  }
  Engine& get() {
    if (born_ != fork_count.load())
      throw CoreError("this process was forked from a rank of the job; only the rank itself can communicate "
                      "(start other processes with the 'spawn' method, or keep ringreduce out of them)");
    return *engine_;
  }

 private:
  std::unique_ptr<Engine> engine_;
  int born_;
};

// Whatever takes the engine's mutex, or may take long, goes through here: a thread that has the GIL and waits
// for the engine would stop all others, and those who are to call what it waits for.
template <typename Call>
auto without_gil(Call call) {
  nb::gil_scoped_release release;
  return call();
}

// Waits in slices, so that Ctrl-C works.
constexpr double kSliceS = 0.1;
template <typename Wait>
void wait_with_signals(Wait wait) {
  for (bool done = false; !done;) {
    raise_if(without_gil([&] { return wait(kSliceS, &done); }));
    if (!done && PyErr_CheckSignals()) throw nb::python_error();
  }
}

struct PyOp {
  PyEngine* engine;
  OpRef op;
  std::weak_ptr<void> kept = {};  // by the core
  nb::object owner = {};          // keeps `engine` alive
};

inline void* pointer(size_t value) { return reinterpret_cast<void*>(value); }

inline DType to_dtype(int code) {
  if (code < 0 || code >= kDTypeCount) throw nb::value_error("dtype code out of range");
  return static_cast<DType>(code);
}

using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

template <typename Owner>
Bytes view(char* data, size_t bytes, std::shared_ptr<Owner> owner) {
  auto* keep = new std::shared_ptr<Owner>(std::move(owner));
  nb::capsule capsule(keep, [](void* p) noexcept { delete static_cast<std::shared_ptr<Owner>*>(p); });
  return Bytes(data, {bytes}, capsule);
}

// False for what the caller must check, convert or explain.
inline bool read_int(nb::handle value, int least, int* to) {
  if (!PyLong_CheckExact(value.ptr())) return false;
  const long number = PyLong_AsLong(value.ptr());
  if (number == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
  *to = static_cast<int>(number);
  return number >= least && number <= INT32_MAX;
}

// submissions.cc
void bind_op(nb::module_& m);
void bind_submissions(nb::class_<PyEngine>& c);

// gpu.cc
void bind_gpu(nb::module_& m);
void bind_gpu_engine(nb::class_<PyEngine>& c);
void bind_gpu_op(nb::class_<PyOp>& c);

void bind_plans(nb::module_& m);   // plans.cc
void bind_digest(nb::module_& m);  // digest.cc

// messages.cc
void bind_messages(nb::module_& m);
void bind_message_calls(nb::class_<PyEngine>& c);

}  // namespace ringreduce
