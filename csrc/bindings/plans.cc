// Gradient buckets, on the CPU and on the GPU, for Python. No logic; ringreduce/_core.pyi is its documentation.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>

#include "bindings/support.h"

using namespace nb::literals;

namespace ringreduce {
namespace {

struct PyPlan {
  PyEngine* engine;
  std::shared_ptr<Plan> plan;
  std::shared_ptr<Segment> segment;
};

struct PyGpuPlan {
  PyEngine* engine;
  std::shared_ptr<GpuPlan> plan;
};

std::vector<BucketSpec> specs(const std::vector<std::pair<size_t, int>>& buckets) {
  std::vector<BucketSpec> out;
  for (const auto& [count, dtype] : buckets) out.push_back({count, static_cast<DType>(dtype)});
  return out;
}

std::vector<GpuInfo> to_infos(const std::vector<nb::bytes>& bytes) {
  std::vector<GpuInfo> infos(bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i].size() != sizeof(GpuInfo)) throw nb::value_error("infos: not what gpu_info() gave");
    std::memcpy(&infos[i], bytes[i].c_str(), sizeof(GpuInfo));
  }
  return infos;
}

void bind_plan(nb::module_& m) {
  nb::class_<PyPlan>(m, "Plan")
      .def_static("segment_bytes", [](int local_size, const std::vector<std::pair<size_t, int>>& buckets) {
        return std::make_pair(Plan::segment_bytes(local_size, specs(buckets)), Plan::reserved_bytes(local_size, specs(buckets)));
      }, "local_size"_a, "buckets"_a)
      .def("__init__", [](PyPlan* self, PyEngine& engine, int set_id, const std::vector<std::pair<size_t, int>>& buckets, int op,
                          double prescale, double postscale, std::shared_ptr<Segment> segment, int64_t channel) {
        std::shared_ptr<Plan> plan;
        Engine& target = engine.get();
        raise_if(without_gil([&] {
          return target.add_plan(set_id, specs(buckets), op, prescale, postscale, segment, channel, &plan);
        }));
        new (self) PyPlan{&engine, plan, segment};
      }, nb::keep_alive<1, 2>(), "engine"_a, "set_id"_a, "buckets"_a, "op"_a, "prescale"_a, "postscale"_a, "segment"_a,
           "channel"_a)
      .def("part", [](const PyPlan& self, int bucket, int side, size_t offset, size_t bytes) {
        if (side < 0 || side >= Plan::kSides || offset > self.plan->bytes(bucket) || bytes > self.plan->bytes(bucket) - offset)
          throw nb::value_error("a part of a bucket ends within it, on side 0 or 1");
        if (side) raise_if(without_gil([&] { return self.plan->reserve(bucket, side); }));
        return view(self.plan->buffer(bucket, side) + offset, bytes, self.segment);
      }, "bucket"_a, "side"_a, "offset"_a, "nbytes"_a)
      .def("launch", [](const PyPlan& self, int bucket, int side) {
        Engine& engine = self.engine->get();
        raise_if(without_gil([&] { return engine.launch(*self.plan, bucket, side); }));
      }, "bucket"_a, "side"_a = 0)
      .def("wait", [](const PyPlan& self, int bucket) {
        Engine& engine = self.engine->get();
        const int64_t since_ns = now_ns();
        wait_with_signals([&](double slice, bool* done) {
          return engine.wait_bucket(*self.plan, bucket, slice, done, since_ns);
        });
        release_kept();
      }, "bucket"_a)
      .def("leave", [](const PyPlan& self, const std::string& why) {
        Engine& engine = self.engine->get();
        raise_if(without_gil([&] { return engine.leave(self.plan->id(), why); }));
      }, "why"_a)
      .def("close", [](const PyPlan& self) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.remove_plan(self.plan); });
      });
}

void bind_gpu_plan(nb::module_& m) {
  nb::class_<PyGpuPlan>(m, "GpuPlan")
      .def("__init__", [](PyGpuPlan* self, PyEngine& engine, int set_id, const std::vector<nb::bytes>& infos,
                          const std::vector<std::tuple<size_t, size_t, int>>& buckets, int op, double prescale,
                          double postscale, PyPlan* host, int64_t channel) {
        std::vector<GpuBucketSpec> specs;
        for (const auto& [data, count, dtype] : buckets) specs.push_back({static_cast<char*>(pointer(data)), count, to_dtype(dtype)});
        std::shared_ptr<GpuPlan> plan;
        Engine& target = engine.get();
        const std::vector<GpuInfo> of_ranks = to_infos(infos);
        raise_if(without_gil([&] {
          return target.add_gpu_plan(set_id, of_ranks, specs, op, prescale, postscale, host ? host->plan : nullptr, channel,
                                     &plan);
        }));
        new (self) PyGpuPlan{&engine, plan};
      }, nb::keep_alive<1, 2>(), "engine"_a, "set_id"_a, "infos"_a, "buckets"_a, "op"_a, "prescale"_a, "postscale"_a,
           "host"_a.none(), "channel"_a)
      .def_prop_ro("stream", [](const PyGpuPlan& self) { return reinterpret_cast<size_t>(self.plan->stream().get()); })
      .def("set_buffer", [](const PyGpuPlan& self, int bucket, size_t data) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.set_buffer(*self.plan, bucket, static_cast<char*>(pointer(data))); });
      }, "bucket"_a, "data"_a)
      .def("launch", [](const PyGpuPlan& self, int bucket, size_t stream) {
        Engine& engine = self.engine->get();
        raise_if(without_gil([&] { return engine.launch(*self.plan, bucket, pointer(stream)); }));
      }, "bucket"_a, "stream"_a)
      .def("wait", [](const PyGpuPlan& self, int bucket, size_t stream) {
        Engine& engine = self.engine->get();
        const int64_t since_ns = now_ns();
        wait_with_signals([&](double slice, bool* done) {
          return engine.wait_bucket(*self.plan, bucket, pointer(stream), slice, done, since_ns);
        });
        release_kept();
      }, "bucket"_a, "stream"_a)
      .def("leave", [](const PyGpuPlan& self, const std::string& why) {
        Engine& engine = self.engine->get();
        raise_if(without_gil([&] { return engine.leave(self.plan->id(), why); }));
      }, "why"_a)
      .def("close", [](const PyGpuPlan& self) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.remove_plan(self.plan); });
      });
}

}  // namespace

void bind_plans(nb::module_& m) {
  m.def("agree_channel", [](const std::vector<std::string>& offers, uint64_t start) {
    int64_t channel = 0;
    raise_if(PlanChannel::agree(offers, start, &channel));
    return channel;
  }, "offers"_a, "start"_a);
  bind_plan(m);
  bind_gpu_plan(m);
}

}  // namespace ringreduce
