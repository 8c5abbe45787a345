// What Python submits, and the operations that it gets. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "bindings/support.h"
#include "bindings/tensor.h"
#include "collectives/kinds.h"

using namespace nb::literals;

namespace ringreduce {
namespace {

void append_shape(nb::handle shape, std::vector<int64_t>* to) {
  for (nb::handle extent : nb::borrow<nb::tuple>(shape)) to->push_back(nb::cast<int64_t>(extent));
}

// A name; address and elements of each input and output; the inputs' shapes; dtype; reduction operation and factors; root;
// elements by rank; what to keep. ringreduce/_ops/submit.py has the same (Request).
using Tensors = std::vector<std::pair<size_t, size_t>>;
using PyRequest = std::tuple<std::optional<std::string>, Tensors, Tensors, nb::sequence, int, int, double, double, int,
                           std::vector<int64_t>, nb::object>;

Submission make_submission(const Kind& kind, const PyRequest& request) {
  const auto& [name, inputs, outputs, shapes, dtype, op, prescale, postscale, root, counts, kept] = request;
  if (kind.alike ? inputs.size() != outputs.size() : inputs.size() != 1) throw nb::value_error("inputs and outputs do not match");
  Submission s;
  s.kind = &kind;
  s.dtype = to_dtype(dtype);
  s.op = op;
  s.prescale = prescale;
  s.postscale = postscale;
  s.root = root;
  if (name) s.name = *name;
  const size_t size = info(s.dtype).size;
  for (size_t i = 0; i < inputs.size(); ++i) {
    char* out = kind.alike ? static_cast<char*>(pointer(outputs[i].first)) : nullptr;
    s.pieces.push_back({static_cast<char*>(pointer(inputs[i].first)), out, inputs[i].second * size});
    if (i) s.shape.push_back(Submission::kNextTensor);
    append_shape(shapes[i], &s.shape);
  }
  if (!kind.alike)
    for (const auto& [address, elements] : outputs) s.outputs.push_back({static_cast<char*>(pointer(address)), elements * size});
  for (int64_t count : counts) s.counts.push_back(count * static_cast<int64_t>(size));
  s.keep = keep(kept);
  return s;
}

// False for what the caller must check, convert or explain.
bool read_arithmetic(nb::handle op, nb::handle prescale, nb::handle postscale, Arithmetic* to) {
  if (!PyFloat_CheckExact(prescale.ptr()) || !PyFloat_CheckExact(postscale.ptr())) return false;
  to->prescale = PyFloat_AsDouble(prescale.ptr());
  to->postscale = PyFloat_AsDouble(postscale.ptr());
  to->op = kAverage;
  if (op.is_none()) return true;
  if (!PyLong_Check(op.ptr()) || PyBool_Check(op.ptr())) return false;
  const long number = PyLong_AsLong(op.ptr());
  if (number == -1 && PyErr_Occurred()) return PyErr_Clear(), false;
  to->op = static_cast<int>(number);
  return number == to->op && find_op(to->op);
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

// A plain call, and what Python has given for its result.
struct PyCall {
  PlainCall call;
  PlainTensor tensor;
  int64_t extents[8];  // of the tensor: another thread may change it while this one waits
  nb::object result;  // a new tensor for it

  // False for what the caller must check, convert or explain.
  bool read(const Kind& kind, nb::handle name, nb::handle from, nb::handle to, nb::handle root);

 private:
  bool read_name(nb::handle name);
  bool read_output(nb::handle from, nb::handle to);
};

bool PyCall::read_name(nb::handle name) {
  if (name.is_none()) return true;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_CheckExact(name.ptr()) ? PyUnicode_AsUTF8AndSize(name.ptr(), &size) : nullptr;
  if (!text) PyErr_Clear();
  call.name = {text ? text : "", static_cast<size_t>(size)};
  return size > 0;
}

// Of the result, where all ranks have as many.
int64_t rows_of_result(const PlainCall& call, int rank, int size) {
  if (call.kind->counts == Kind::Counts::kNone) return call.rows * size;
  return call.kind->counts == Kind::Counts::kOwn ? call.rows : call.rows / size + (rank < call.rows % size);
}

// The tensor itself, another one of its dtype, or this rank's place in its set for a new one: of torch's memory where
// there is little to take along, else of what the core has the result in.
bool PyCall::read_output(nb::handle from, nb::handle to) {
  PlainTensor output = tensor;
  if (PyTuple_CheckExact(to.ptr())) {
    if (!can_make_tensors(tensor)) return false;
    if (call.bytes > kSmallBytes) return true;
    const auto [rank, size] = nb::cast<std::pair<int, int>>(to);
    result = make_plain_tensor(tensor, rows_of_result(call, rank, size), &output);
    if (result.is_none()) return false;
  } else if (!to.is(from) && !read_plain_tensor(to, &output)) {
    return false;
  }
  call.out = output.data;
  call.room = output.bytes;
  return output.dtype == tensor.dtype;
}

bool PyCall::read(const Kind& kind, nb::handle name, nb::handle from, nb::handle to, nb::handle root) {
  call.kind = &kind;
  if (!read_name(name) || (kind.root != Kind::Root::kNone && !read_int(root, 0, &call.root))) return false;
  if (from.is_none()) return kind.small == Kind::Small::kNothing;
  if (!read_plain_tensor(from, &tensor) || tensor.dims > std::size(extents)) return false;
  std::copy_n(tensor.shape, tensor.dims, extents);
  tensor.shape = extents;
  call.dtype = tensor.dtype;
  call.in = tensor.data;
  call.bytes = tensor.bytes;
  call.shape = tensor.shape;
  call.dims = tensor.dims;
  if (!kind.alike) {
    if (!tensor.dims || !tensor.bytes) return false;
    call.rows = tensor.shape[0];
    if (kind.rows) ++call.shape, --call.dims;
  }
  return read_output(from, to);
}

// The result of an operation that is done, where it goes; false if that is not there, or not as large.
bool deliver(const Op& op, const PlainCall& call) {
  if (call.kind->alike) return true;
  if (!call.out || op.output.bytes != call.room) return false;
  if (call.room) std::memcpy(call.out, op.output.data.get(), call.room);
  return true;
}

// As many rows like those of `like` as there are.
nb::object rows_of(const Output& output, const PlainTensor& like) {
  const int64_t row_bytes = static_cast<int64_t>(like.bytes) / like.shape[0];
  return make_plain_tensor(like, static_cast<int64_t>(output.bytes) / row_bytes, output.data);
}

// Until the core is done with them; for good where there is no memory to tell it so.
void keep_for(Engine& engine, const OpRef& op, nb::handle tensor, nb::handle result) {
  try {
    std::shared_ptr<void> kept = keep(nb::make_tuple(tensor, result));
    without_gil([&] { engine.keep(op, std::move(kept)); });
  } catch (const std::exception&) {
    tensor.inc_ref();
    result.inc_ref();
  }
}

// None: nothing was done. The output, which has the result; True where there is none.
nb::object call_plain(EngineObject self, int set_id, const char* kind, nb::handle name, nb::handle tensor, nb::handle output,
                      nb::handle op, nb::handle prescale, nb::handle postscale, nb::handle root) {
  PyCall plain;
  const Kind* known = find_kind(kind);
  if (!known) throw nb::value_error("no such collective");
  if (known->reduces && !read_arithmetic(op, prescale, postscale, &plain.call)) return nb::none();
  if (!plain.read(*known, name, tensor, output, root)) return nb::none();
  Engine& engine = nb::inst_ptr<PyEngine>(self)->get();
  OpRef rest;
  bool here = false, done = false;
  const auto result = [&] { return plain.result.is_valid() ? plain.result : output.is_none() ? nb::bool_(true) : nb::borrow(output); };
  try {
    raise_if(without_gil([&] {
      RR_TRY(engine.call(set_id, plain.call, &here, &rest));
      return rest ? engine.wait(*rest, -1, kFirstS, &done) : Status::ok();
    }));
    if (rest && !done)
      wait_with_signals(engine, [&](double slice, bool* is_done, Waiting* waiting) { return engine.wait(*rest, -1, slice, is_done, 0, waiting); },
                        [&] { return engine.missing(*rest); });
  } catch (...) {
    if (rest) keep_for(engine, rest, tensor, result());
    throw;
  }
  release_kept();
  if (!here) return nb::none();
  if (!rest) return result();
  if (deliver(*rest, plain.call)) return result();
  return rows_of(rest->output, plain.tensor);
}

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
          wait_with_signals(engine, [&](double slice, bool* done, Waiting* waiting) {
            return engine.wait(*self.op, timeout.value_or(-1), slice, done, since_ns, waiting);
          }, [&] { return engine.missing(*self.op); }, timeout.has_value());
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
  c.def("submit", [](EngineObject self, int set_id, const std::string& name, const std::vector<PyRequest>& requests, int64_t stream,
                     bool wake) {
    const Kind* kind = find_kind(name);
    if (!kind) throw nb::value_error(("no such collective: " + name).c_str());
    std::vector<Submission> group;
    for (const PyRequest& request : requests) group.push_back(make_submission(*kind, request));
    return submit(self, set_id, std::move(group), stream, wake);
  }, "set_id"_a, "kind"_a, "requests"_a, "stream"_a = -1, "wake"_a = true);
  c.def("call_plain", &call_plain, "set_id"_a, "kind"_a, "name"_a.none(), "tensor"_a.none(), "output"_a.none(), "op"_a.none(),
        "prescale"_a.none(), "postscale"_a.none(), "root"_a.none());
}

}  // namespace ringreduce
