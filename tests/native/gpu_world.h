// world.h with a GPU for every rank: the doubles of CUDA and NCCL (tests/doubles/), found as the
// real ones are.
#pragma once

#include <map>

#include "../doubles/load.h"
#include "gpu/library.h"
#include "world.h"

namespace ringreduce {

// What an engine needs to know of CUDA and NCCL, loaded once.
inline std::shared_ptr<const GpuLibrary> gpu_library() {
  static std::shared_ptr<const GpuLibrary> library = [] {
    std::shared_ptr<const GpuLibrary> loaded;
    const Doubles& doubles = Doubles::get();
    CHECK_OK(GpuLibrary::load(doubles.cuda_path, {doubles.nccl_path}, &loaded));
    return loaded;
  }();
  return library;
}

inline std::shared_ptr<const GpuLibrary> without_nccl() {
  auto library = std::make_shared<GpuLibrary>(*gpu_library());
  library->nccl_version = 0;
  library->nccl_problem = "NCCL was not found";
  return library;
}

// A rank's GPU, its stream as a user has one, and memory on it.
class GpuRank {
 public:
  GpuRank(Engine& engine, int rank, std::shared_ptr<const GpuLibrary> library = gpu_library(), int device = -1) : engine_(engine) {
    CHECK_OK(Device::open(std::move(library), device < 0 ? rank : device, &device_));
    CHECK_OK(device_->create_stream(&stream_));
    CHECK_OK(engine.attach_gpu(device_));
    device_->cuda().set_device(device_->index());
  }

  ~GpuRank() { device_->cuda().stream_synchronize(stream_.get()); }  // it reads and writes our memory

  Device& device() { return *device_; }
  void* stream() { return stream_.get(); }

  template <typename T>
  T* upload(const std::vector<T>& values) {
    std::shared_ptr<char> memory;
    CHECK_OK(device_->allocate(values.size() * sizeof(T), stream_, &memory));
    memory_.push_back(memory);
    kept_.push_back(std::make_shared<std::vector<T>>(values));  // copies are read when the stream gets there
    const auto& kept = *static_cast<std::vector<T>*>(kept_.back().get());
    CHECK_OK(device_->copy(memory.get(), kept.data(), kept.size() * sizeof(T), stream_.get()));
    return reinterpret_cast<T*>(memory.get());
  }
  template <typename T>
  std::vector<T> download(const void* from, size_t count) {
    std::vector<T> values(count);
    CHECK_OK(device_->copy(values.data(), from, count * sizeof(T), stream_.get()));
    CHECK_EQ(device_->cuda().stream_synchronize(stream_.get()), kCudaSuccess);
    return values;
  }

  OpRef submit(Submission s, int set = 0) {
    s.on_gpu = true;
    s.stream = stream_.get();
    OpRef op;
    CHECK_OK(engine_.submit(set, std::move(s), true, &op));
    return op;
  }
  void finish(const OpRef& op) {
    CHECK_OK(wait_for(engine_, op));
    CHECK_OK(engine_.join(*op, stream_.get()));
  }

 private:
  Engine& engine_;
  std::shared_ptr<Device> device_;
  GpuStream stream_;
  std::vector<std::shared_ptr<char>> memory_;
  std::vector<std::shared_ptr<void>> kept_;
};

inline Submission gpu_submission(const Kind* kind, const std::string& name, DType dtype, const void* in, void* out, size_t count) {
  Submission s;
  s.kind = kind;
  s.name = name;
  s.dtype = dtype;
  s.pieces = {{static_cast<const char*>(in), static_cast<char*>(out), count * info(dtype).size}};
  s.shape = {static_cast<int64_t>(count)};
  return s;
}

// A gradient plan with memory on the GPU.
struct Buckets {
  std::vector<float*> data;
  std::shared_ptr<GpuPlan> plan;
};
inline const std::vector<size_t> kBuckets = {5, 4000, 1};

inline Buckets make_plan(World& world, int rank, Engine& engine, GpuRank& gpu, int op, double pre, double post, int serial) {
  static std::mutex mutex;
  static std::map<std::pair<World*, int>, std::vector<GpuInfo>> offered;
  // The first operation of a set decides how its operations run.
  float* one = gpu.upload(std::vector<float>{1});
  gpu.finish(gpu.submit(gpu_submission(find_kind("allreduce"), "", DType::kFloat32, one, one, 1)));
  GpuPath path;
  std::string why;
  CHECK_OK(engine.gpu_path(0, &path, &why));
  GpuInfo mine;
  CHECK_OK(engine.gpu_info(0, &mine));
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto& infos = offered[{&world, serial}];
    infos.resize(world.size());
    infos[rank] = mine;
  }
  OpRef met;
  CHECK_OK(engine.submit(0, barrier(), true, &met));
  CHECK_OK(wait_for(engine, met));
  Buckets buckets;
  std::vector<GpuBucketSpec> specs;
  std::vector<BucketSpec> host_specs;
  for (size_t count : kBuckets) {
    buckets.data.push_back(gpu.upload(std::vector<float>(count)));
    specs.push_back({reinterpret_cast<char*>(buckets.data.back()), count, DType::kFloat32});
    host_specs.push_back({count, DType::kFloat32});
  }
  std::shared_ptr<ArenaPlan> host;
  if (path == GpuPath::kHost) {
    const auto& host_of = world.host_of();
    const int locals = static_cast<int>(std::count(host_of.begin(), host_of.end(), host_of[rank]));
    auto segment = world.segment("plan" + std::to_string(serial), host_of[rank], ArenaPlan::segment_bytes(locals, host_specs));
    CHECK_OK(engine.add_plan(0, host_specs, op, pre, post, segment, 128 + serial, &host));
  }
  std::vector<GpuInfo> infos;
  {
    std::lock_guard<std::mutex> lock(mutex);
    infos = offered[{&world, serial}];
  }
  CHECK_OK(engine.add_gpu_plan(0, infos, specs, op, pre, post, host, 128 + serial, &buckets.plan));
  return buckets;
}

inline void wait_for_bucket(Engine& engine, GpuPlan& plan, int bucket, void* stream) {
  for (bool done = false; !done;) CHECK_OK(engine.wait_bucket(plan, bucket, 1, &done, 0, stream));
}

// Settings as they were; nothing was done that real CUDA and NCCL punish.
inline void reset_doubles() {
  CHECK_EQ(Doubles::get().misuse_text(), std::string());
  Doubles::get().reset();
}

}  // namespace ringreduce
