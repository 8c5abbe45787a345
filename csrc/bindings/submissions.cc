// What Python submits, and the operations that it gets. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/support.h"
#include "bindings/tensor.h"

using namespace nb::literals;

namespace ringreduce {
namespace {

void append_shape(nb::handle shape, std::vector<int64_t>* to) {
  for (nb::handle extent : nb::borrow<nb::tuple>(shape)) to->push_back(nb::cast<int64_t>(extent));
}

const char* address(size_t value) { return reinterpret_cast<const char*>(value); }
char* writable(size_t value) { return reinterpret_cast<char*>(value); }

Submission make_submission(Kind kind, const std::optional<std::string>& name, int dtype) {
  if (dtype < 0 || dtype >= kDTypeCount) throw nb::value_error("dtype code out of range");
  Submission s;
  s.kind = kind;
  s.dtype = static_cast<DType>(dtype);
  if (name) s.name = *name;
  return s;
}

// False for what the caller must check, convert or explain.
bool read_numbers(nb::handle op, nb::handle prescale, nb::handle postscale, Arithmetic* to) {
  if (!PyFloat_CheckExact(prescale.ptr()) || !PyFloat_CheckExact(postscale.ptr())) return false;
  to->prescale = PyFloat_AS_DOUBLE(prescale.ptr());
  to->postscale = PyFloat_AS_DOUBLE(postscale.ptr());
  to->op = kAverage;
  if (op.is_none()) return true;
  if (!PyLong_Check(op.ptr()) || PyBool_Check(op.ptr())) return false;
  const long number = PyLong_AsLong(op.ptr());
  if (number == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
  to->op = static_cast<int>(number);
  return number == kAverage || (number >= kOpSum && number <= kOpProduct && number != 2);
}

using EngineObject = nb::handle_t<PyEngine>;

// `stream`: -1 where the tensors are on the CPU.
std::vector<PyOp> submit(EngineObject self, int set_id, std::vector<Submission> group, int64_t stream, bool wake) {
  std::vector<std::weak_ptr<void>> kept;
  for (Submission& submission : group) {
    submission.on_gpu = stream >= 0;
    if (submission.on_gpu) submission.stream = pointer(stream);
    kept.push_back(submission.keep);
  }
  PyEngine* engine = nb::inst_ptr<PyEngine>(self);
  Engine& target = engine->get();
  std::vector<OpRef> ops;
  const Status status = without_gil([&] { return target.submit(set_id, std::move(group), wake, &ops); });
  if (!status.is_ok()) ops.clear();
  release_kept();
  raise_if(status);
  std::vector<PyOp> result;
  for (size_t i = 0; i < ops.size(); ++i) result.push_back({engine, std::move(ops[i]), std::move(kept[i]), nb::borrow(self)});
  return result;
}

PyOp submit(EngineObject self, int set_id, Submission submission, int64_t stream = -1, bool wake = true) {
  std::vector<Submission> group;
  group.push_back(std::move(submission));
  return submit(self, set_id, std::move(group), stream, wake)[0];
}

std::vector<int64_t> in_bytes(const std::vector<int64_t>& counts, DType dtype) {
  std::vector<int64_t> bytes(counts);
  for (int64_t& count : bytes) count *= static_cast<int64_t>(info(dtype).size);
  return bytes;
}

// A label, addresses, addresses, elements and shapes of its tensors; dtype; reduction; what to keep.
using AllreducePart = std::tuple<std::optional<std::string>, std::vector<size_t>, std::vector<size_t>, std::vector<size_t>,
                                 nb::list, int, int, nb::object>;

}  // namespace

void bind_op(nb::module_& m) {
  nb::class_<PyOp> c(m, "Op");
  bind_gpu_op(c);
  c.def_prop_ro("name", [](const PyOp& self) { return self.op->submission.name; })
      .def("done", [](const PyOp& self) {
        release_kept();
        return self.op->is_finished();
      })
      .def("wait", [](const PyOp& self, std::optional<double> timeout) {
        if (!self.op->is_done()) {
          Engine& engine = self.engine->get();
          const int64_t since_ns = timeout ? now_ns() : 0;
          wait_with_signals([&](double slice, bool* done) {
            return engine.wait(*self.op, timeout.value_or(-1), slice, done, since_ns);
          });
        }
        release_kept();
        raise_if(self.op->status);
      }, "timeout"_a = nb::none())
      .def("renew", [](const PyOp& self) { self.op->renew(); })
      .def("output", [](const PyOp& self) { return view(self.op->output.data.get(), self.op->output.bytes, self.op); })
      .def("counts", [](const PyOp& self) {
        std::vector<int64_t> counts = self.op->output.counts;
        for (int64_t& count : counts) count /= static_cast<int64_t>(info(self.op->submission.dtype).size);
        return counts;
      });
}

void bind_submissions(nb::class_<PyEngine>& c) {
  c.def("allreduce", [](EngineObject self, int set_id, const std::vector<AllreducePart>& parts, double prescale,
                        double postscale, int64_t stream, bool wake) {
    std::vector<Submission> group;
    for (const auto& [name, inputs, outputs, counts, shapes, dtype, op, kept] : parts) {
      Submission s = make_submission(Kind::kAllreduce, name, dtype);
      s.op = op;
      s.prescale = prescale;
      s.postscale = postscale;
      for (size_t i = 0; i < inputs.size(); ++i) {
        s.pieces.push_back({address(inputs[i]), writable(outputs[i]), counts[i] * info(s.dtype).size});
        if (i) s.shape.push_back(Submission::kNextTensor);
        append_shape(shapes[i], &s.shape);
      }
      s.keep = keep(kept);
      group.push_back(std::move(s));
    }
    return submit(self, set_id, std::move(group), stream, wake);
  }, "set_id"_a, "parts"_a, "prescale"_a, "postscale"_a, "stream"_a = -1, "wake"_a = true);
  c.def("allreduce_plain", [](PyEngine& self, int set_id, nb::handle tensor, nb::handle op, nb::handle prescale, nb::handle postscale) {
    PlainAllreduce plain;
    if (!read_numbers(op, prescale, postscale, &plain) || !read_plain_tensor(tensor, &plain)) return false;
    Engine& engine = self.get();
    OpRef rest;
    raise_if(without_gil([&] { return engine.allreduce(set_id, plain, &rest); }));
    release_kept();
    if (!rest) return true;
    try {
      wait_with_signals([&](double slice, bool* done) { return engine.wait(*rest, -1, slice, done); });
    } catch (...) {  // until here the caller has kept it
      std::shared_ptr<void> kept = keep(tensor);
      without_gil([&] { engine.keep(rest, std::move(kept)); });
      throw;
    }
    return true;
  }, "set_id"_a, "tensor"_a.none(), "op"_a.none(), "prescale"_a.none(), "postscale"_a.none());
  c.def("broadcast", [](EngineObject self, int set_id, std::optional<std::string> name, size_t input, size_t output,
                        size_t count, nb::handle shape, int dtype, int root, nb::handle kept, int64_t stream, bool wake) {
    Submission s = make_submission(Kind::kBroadcast, name, dtype);
    s.keep = keep(kept);
    s.root = root;
    s.pieces.push_back({address(input), writable(output), count * info(s.dtype).size});
    append_shape(shape, &s.shape);
    return submit(self, set_id, std::move(s), stream, wake);
  }, "set_id"_a, "name"_a.none(), "input"_a, "output"_a, "count"_a, "shape"_a, "dtype"_a, "root"_a, "keep"_a = nb::none(),
     "stream"_a = -1, "wake"_a = true);
  c.def("allgather", [](EngineObject self, int set_id, std::optional<std::string> name, size_t input, size_t count,
                        nb::handle shape, int dtype, nb::handle kept, int64_t stream, bool wake) {
    Submission s = make_submission(Kind::kAllgather, name, dtype);
    s.keep = keep(kept);
    s.pieces.push_back({address(input), nullptr, count * info(s.dtype).size});
    append_shape(shape, &s.shape);
    return submit(self, set_id, std::move(s), stream, wake);
  }, "set_id"_a, "name"_a.none(), "input"_a, "count"_a, "shape"_a, "dtype"_a, "keep"_a = nb::none(), "stream"_a = -1,
     "wake"_a = true);
  c.def("reducescatter", [](EngineObject self, int set_id, std::optional<std::string> name, size_t input, size_t output,
                            const std::vector<int64_t>& recv_counts, nb::handle shape, int dtype, int op, double prescale,
                            double postscale, nb::handle kept, int64_t stream, bool wake) {
    Submission s = make_submission(Kind::kReducescatter, name, dtype);
    s.keep = keep(kept);
    s.op = op;
    s.prescale = prescale;
    s.postscale = postscale;
    s.counts = in_bytes(recv_counts, s.dtype);
    size_t bytes = 0;
    for (int64_t count : s.counts) bytes += count;
    s.pieces.push_back({address(input), writable(output), bytes});
    append_shape(shape, &s.shape);
    return submit(self, set_id, std::move(s), stream, wake);
  }, "set_id"_a, "name"_a.none(), "input"_a, "output"_a, "recv_counts"_a, "shape"_a, "dtype"_a, "op"_a, "prescale"_a,
     "postscale"_a, "keep"_a = nb::none(), "stream"_a = -1, "wake"_a = true);
  c.def("alltoall", [](EngineObject self, int set_id, std::optional<std::string> name, size_t input,
                       const std::vector<int64_t>& send_counts, nb::handle shape, int dtype, nb::handle kept, int64_t stream, bool wake) {
    Submission s = make_submission(Kind::kAlltoall, name, dtype);
    s.keep = keep(kept);
    s.counts = in_bytes(send_counts, s.dtype);
    size_t bytes = 0;
    for (int64_t count : s.counts) bytes += count;
    s.pieces.push_back({address(input), nullptr, bytes});
    append_shape(shape, &s.shape);
    return submit(self, set_id, std::move(s), stream, wake);
  }, "set_id"_a, "name"_a.none(), "input"_a, "send_counts"_a, "shape"_a, "dtype"_a, "keep"_a = nb::none(), "stream"_a = -1,
     "wake"_a = true);
  c.def("barrier", [](EngineObject self, int set_id) {
    return submit(self, set_id, make_submission(Kind::kBarrier, std::nullopt, 0));
  });
}

}  // namespace ringreduce
