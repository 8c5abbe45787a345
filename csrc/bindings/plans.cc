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
};

struct PyArenaPlan : PyPlan {
  std::shared_ptr<ArenaPlan> arena;
  std::shared_ptr<Segment> segment;
};

struct PyGpuPlan : PyPlan {
  std::shared_ptr<GpuPlan> gpu;
};

std::vector<BucketSpec> specs(const std::vector<std::pair<size_t, int>>& buckets) {
  std::vector<BucketSpec> out;
  for (const auto& [count, dtype] : buckets) out.push_back({count, to_dtype(dtype)});
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
      .def("launch", [](const PyPlan& self, int bucket, int side, size_t stream) {
        Engine& engine = self.engine->get();
        Plan::Where where(side);
        where.stream = pointer(stream);
        raise_if(without_gil([&] { return engine.launch(*self.plan, bucket, where); }));
      }, "bucket"_a, "side"_a = 0, "stream"_a = 0)
      .def("wait", [](const PyPlan& self, int bucket, size_t stream) {
        Engine& engine = self.engine->get();
        const int64_t since_ns = now_ns();
        wait_with_signals(engine, [&](double slice, bool* done, Waiting* waiting) {
          return engine.wait_bucket(*self.plan, bucket, slice, done, since_ns, pointer(stream), waiting);
        }, [&] { return engine.missing(*self.plan, bucket); });
        release_kept();
      }, "bucket"_a, "stream"_a = 0)
      .def("set_contents", [](const PyPlan& self, std::vector<std::string> contents) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.set_contents(*self.plan, std::move(contents)); });
      }, "contents"_a)
      .def("leave", [](const PyPlan& self, const std::string& why) {
        Engine& engine = self.engine->get();
        raise_if(without_gil([&] { return engine.leave(self.plan->id(), why); }));
      }, "why"_a)
      .def("close", [](const PyPlan& self) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.remove_plan(self.plan); });
      });
}

void bind_arena_plan(nb::module_& m) {
  nb::class_<PyArenaPlan, PyPlan>(m, "ArenaPlan")
      .def_static("segment_bytes", [](int local_size, const std::vector<std::pair<size_t, int>>& buckets) {
        return std::make_pair(ArenaPlan::segment_bytes(local_size, specs(buckets)), ArenaPlan::reserved_bytes(local_size, specs(buckets)));
      }, "local_size"_a, "buckets"_a)
      .def("__init__", [](PyArenaPlan* self, PyEngine& engine, int set_id, const std::vector<std::pair<size_t, int>>& buckets, int op,
                          double prescale, double postscale, std::shared_ptr<Segment> segment, int64_t channel) {
        std::shared_ptr<ArenaPlan> plan;
        Engine& target = engine.get();
        raise_if(without_gil([&] {
          return target.add_plan(set_id, specs(buckets), op, prescale, postscale, segment, channel, &plan);
        }));
        new (self) PyArenaPlan{{&engine, plan}, plan, segment};
      }, nb::keep_alive<1, 2>(), "engine"_a, "set_id"_a, "buckets"_a, "op"_a, "prescale"_a, "postscale"_a, "segment"_a,
           "channel"_a)
      .def("part", [](const PyArenaPlan& self, int bucket, int side, size_t offset, size_t bytes) {
        const ArenaPlan& plan = *self.arena;
        if (side < 0 || side >= ArenaPlan::kSides || offset > plan.bytes(bucket) || bytes > plan.bytes(bucket) - offset)
          throw nb::value_error("a part of a bucket ends within it, on side 0 or 1");
        if (side) raise_if(without_gil([&] { return plan.reserve(bucket, side); }));
        return view(plan.buffer(bucket, side) + offset, bytes, self.segment);
      }, "bucket"_a, "side"_a, "offset"_a, "nbytes"_a);
}

void bind_gpu_plan(nb::module_& m) {
  nb::class_<PyGpuPlan, PyPlan>(m, "GpuPlan")
      .def("__init__", [](PyGpuPlan* self, PyEngine& engine, int set_id, const std::vector<nb::bytes>& infos,
                          const std::vector<std::tuple<size_t, size_t, int>>& buckets, int op, double prescale,
                          double postscale, PyArenaPlan* host, int64_t channel) {
        std::vector<GpuBucketSpec> specs;
        for (const auto& [data, count, dtype] : buckets) specs.push_back({static_cast<char*>(pointer(data)), count, to_dtype(dtype)});
        std::shared_ptr<GpuPlan> plan;
        Engine& target = engine.get();
        const std::vector<GpuInfo> of_ranks = to_infos(infos);
        raise_if(without_gil([&] {
          return target.add_gpu_plan(set_id, of_ranks, specs, op, prescale, postscale, host ? host->arena : nullptr, channel,
                                     &plan);
        }));
        new (self) PyGpuPlan{{&engine, plan}, plan};
      }, nb::keep_alive<1, 2>(), "engine"_a, "set_id"_a, "infos"_a, "buckets"_a, "op"_a, "prescale"_a, "postscale"_a,
           "host"_a.none(), "channel"_a)
      .def_prop_ro("stream", [](const PyGpuPlan& self) { return reinterpret_cast<size_t>(self.gpu->stream().get()); })
      .def("set_buffer", [](const PyGpuPlan& self, int bucket, size_t data) {
        Engine& engine = self.engine->get();
        without_gil([&] { engine.set_buffer(*self.gpu, bucket, static_cast<char*>(pointer(data))); });
      }, "bucket"_a, "data"_a);
}

}  // namespace

void bind_plans(nb::module_& m) {
  m.def("agree_channel", [](const std::vector<std::string>& offers, uint64_t start) {
    int64_t channel = 0;
    raise_if(PlanChannel::agree(offers, start, &channel));
    return channel;
  }, "offers"_a, "start"_a);
  bind_plan(m);
  bind_arena_plan(m);
  bind_gpu_plan(m);
}

}  // namespace ringreduce
