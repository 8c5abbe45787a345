// The GPU part of the Python module. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/support.h"
#include "common/settings.h"

using namespace nb::literals;

namespace ringreduce {
namespace {

struct PyGpu {
  std::shared_ptr<const GpuLibrary> library;
  std::shared_ptr<Device> device;
  const CudaApi& cuda() const { return *library->cuda; }
};

std::string library_path(const std::string& installed) {
  const std::string& wanted = settings().cuda_library;
  return wanted.empty() ? installed : wanted;
}

// The part of pack and unpack that is the same.
template <typename Function>
void move_items(const PyGpu& gpu, Function function, const char* what, size_t bucket, int bucket_dtype, int tensor_dtype,
                const std::vector<size_t>& tensors, const std::vector<size_t>& offsets, const std::vector<size_t>& counts,
                double scale, size_t stream) {
  if (offsets.size() != tensors.size() || counts.size() != tensors.size())
    throw nb::value_error("tensors, offsets and counts differ in length");
  std::vector<PackItem> items(tensors.size());
  for (size_t i = 0; i < items.size(); ++i) items[i] = {pointer(tensors[i]), offsets[i], counts[i]};
  const PackArgs args{pointer(bucket), to_dtype(bucket_dtype), to_dtype(tensor_dtype), items.data(),
                      static_cast<int>(items.size()), scale};
  Device::Scope scope(*gpu.device);
  raise_if(gpu.device->check(function(&args, pointer(stream)), what));
}

nb::dict probe(const std::string& installed) {
  nb::dict found;
  const CudaApi* cuda = nullptr;
  const Status status = load_cuda(library_path(installed), &cuda);
  found["library"] = library_path(installed);
  found["problem"] = status.text();
  found["driver"] = found["runtime"] = 0;
  nb::list devices;
  if (status.is_ok()) {
    int driver = 0, runtime = 0, count = 0;
    cuda->driver_version(&driver);
    cuda->runtime_version(&runtime);
    found["driver"] = driver;
    found["runtime"] = runtime;
    const int error = cuda->device_count(&count);
    if (error != kCudaSuccess) found["problem"] = cuda->error_text(error);
    for (int i = 0; error == kCudaSuccess && i < count; ++i) {
      char name[256] = {}, pci[32] = {};
      cuda->device_name(i, name, sizeof name);
      cuda->pci_bus_id(i, pci, sizeof pci);
      devices.append(nb::make_tuple(name, pci));
    }
  }
  found["devices"] = devices;
  return found;
}

void bind_streams(nb::class_<PyGpu>& c) {
  c.def("order", [](const PyGpu& self, size_t before, size_t after) {
    raise_if(self.device->order(pointer(before), pointer(after)));
  }, "before"_a, "after"_a);
  c.def("capturing", [](const PyGpu& self, size_t stream) { return self.device->capturing(pointer(stream)); }, "stream"_a);
}

void bind_kernels(nb::class_<PyGpu>& c) {
  c.def("pack", [](const PyGpu& self, size_t bucket, int bucket_dtype, int tensor_dtype, const std::vector<size_t>& tensors,
                   const std::vector<size_t>& offsets, const std::vector<size_t>& counts, double scale, size_t stream) {
    move_items(self, self.cuda().pack, "packing tensors", bucket, bucket_dtype, tensor_dtype, tensors, offsets, counts, scale, stream);
  }, "bucket"_a, "bucket_dtype"_a, "tensor_dtype"_a, "tensors"_a, "offsets"_a, "counts"_a, "scale"_a, "stream"_a);
  c.def("unpack", [](const PyGpu& self, size_t bucket, int bucket_dtype, int tensor_dtype, const std::vector<size_t>& tensors,
                     const std::vector<size_t>& offsets, const std::vector<size_t>& counts, double scale, size_t stream) {
    move_items(self, self.cuda().unpack, "unpacking tensors", bucket, bucket_dtype, tensor_dtype, tensors, offsets, counts, scale, stream);
  }, "bucket"_a, "bucket_dtype"_a, "tensor_dtype"_a, "tensors"_a, "offsets"_a, "counts"_a, "scale"_a, "stream"_a);
  c.def("merge_rows", [](const PyGpu& self, size_t out, size_t values, size_t order, size_t first, size_t out_rows,
                         size_t width, int dtype, double scale, size_t stream) {
    const MergeRowsArgs args{pointer(out), pointer(values), static_cast<const int64_t*>(pointer(order)),
                             static_cast<const int64_t*>(pointer(first)), out_rows, width, to_dtype(dtype), scale};
    Device::Scope scope(*self.device);
    raise_if(self.device->check(self.cuda().merge_rows(&args, pointer(stream)), "merging rows"));
  }, "out"_a, "values"_a, "order"_a, "first"_a, "out_rows"_a, "width"_a, "dtype"_a, "scale"_a, "stream"_a);
  c.def("reduce", [](const PyGpu& self, size_t dst, const std::vector<size_t>& sources, size_t count, int dtype, int op,
                     double prescale, double postscale, size_t stream) {
    if (sources.empty() || sources.size() > DeviceReduceArgs::kReduceSources)
      throw nb::value_error(("sources: 1 to " + std::to_string(DeviceReduceArgs::kReduceSources) + " are possible").c_str());
    std::vector<const void*> addresses;
    for (size_t source : sources) addresses.push_back(pointer(source));
    Submission s;
    s.op = op;
    s.prescale = prescale;
    s.postscale = postscale;
    const DeviceReduceArgs args{pointer(dst), addresses.data(), static_cast<int>(addresses.size()), count, to_dtype(dtype),
                                s.reduction(), s.scale(static_cast<int>(addresses.size()))};
    Device::Scope scope(*self.device);
    raise_if(self.device->check(self.cuda().reduce(&args, pointer(stream)), "reducing"));
  }, "dst"_a, "sources"_a, "count"_a, "dtype"_a, "op"_a, "prescale"_a, "postscale"_a, "stream"_a);
}

}  // namespace

void bind_gpu(nb::module_& m) {
  nb::class_<PyGpu> c(m, "Gpu");
  c.def("__init__", [](PyGpu* self, const std::string& cuda_library, const std::vector<std::string>& nccl_candidates, int device) {
    PyGpu gpu;
    raise_if(GpuLibrary::load(library_path(cuda_library), nccl_candidates, &gpu.library));
    raise_if(Device::open(gpu.library, device, &gpu.device));
    new (self) PyGpu(std::move(gpu));
  }, "cuda_library"_a, "nccl_candidates"_a, "device"_a);
  c.def_prop_ro("device", [](const PyGpu& self) { return self.device->index(); });
  c.def_prop_ro("is_double", [](const PyGpu& self) { return self.cuda().is_double; });
  c.def_prop_ro("nccl_path", [](const PyGpu& self) { return self.library->nccl_path; });
  c.def_prop_ro("nccl_problem", [](const PyGpu& self) { return self.library->nccl_problem; });
  c.def_prop_ro("nccl_version", [](const PyGpu& self) { return self.library->nccl_version; });
  c.def_static("probe", probe, "cuda_library"_a);
  bind_streams(c);
  bind_kernels(c);
}

void bind_gpu_engine(nb::class_<PyEngine>& c) {
  c.def("attach_gpu", [](PyEngine& self, const PyGpu& gpu) {
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.attach_gpu(gpu.device); }));
  }, "gpu"_a);
  c.def("split_gpu", [](PyEngine& self, int set_id) {
    PyOp op{&self, nullptr};
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.submit_split(set_id, &op.op); }));
    return op;
  }, nb::keep_alive<0, 1>(), "set_id"_a);
  c.def("gpu_info", [](PyEngine& self, int set_id) {
    GpuInfo info;
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.gpu_info(set_id, &info); }));
    return nb::bytes(reinterpret_cast<const char*>(&info), sizeof info);
  }, "set_id"_a);
  c.def("gpu_path", [](PyEngine& self, int set_id) {
    GpuPath path;
    std::string why;
    Engine& engine = self.get();
    raise_if(without_gil([&] { return engine.gpu_path(set_id, &path, &why); }));
    return nb::make_tuple(path == GpuPath::kNccl ? "nccl" : "host", why);
  }, "set_id"_a);
}

void bind_gpu_op(nb::class_<PyOp>& c) {
  c.def_prop_ro("on_gpu", [](const PyOp& self) { return self.op->gpu != nullptr; });
  c.def_prop_ro("stream", [](const PyOp& self) { return reinterpret_cast<size_t>(self.op->gpu->stream.get()); });
  c.def("join", [](const PyOp& self, size_t stream) {
    Engine& engine = self.engine->get();
    raise_if(without_gil([&] { return engine.join(*self.op, pointer(stream)); }));
    return take_kept(self.kept.lock().get());
  }, "stream"_a);
  c.def_prop_ro("output_bytes", [](const PyOp& self) { return self.op->output.bytes; });
  c.def("take_output", [](const PyOp& self, size_t to, size_t stream) {
    GpuOp& gpu = *self.op->gpu;
    Device::Scope scope(*gpu.device);
    raise_if(gpu.device->copy(pointer(to), gpu.output.get(), self.op->output.bytes, pointer(stream)));
    raise_if(gpu.device->order(pointer(stream), gpu.stream.get()));
    gpu.output.reset();
  }, "to"_a, "stream"_a);
  c.def_prop_ro("submission_stream", [](const PyOp& self) { return reinterpret_cast<size_t>(self.op->submission.stream); });
}

}  // namespace ringreduce
