// What the bodies of the kernels are made of: code that nvcc compiles for the GPU and g++ for the
// host, where emulate.h runs the same bodies thread by thread. So no body has shared memory, warp
// instructions or barriers; a body is a function of (parameters, block, thread).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define RR_HD __host__ __device__ __forceinline__
#define RR_HD_CALL __host__ __device__ __noinline__  // long code that is rarely run
#else
#define RR_HD inline
#define RR_HD_CALL
#endif
#if defined(__CUDA_ARCH__)
#define RR_PRAGMA(text) _Pragma(#text)
#define RR_UNROLL(times) RR_PRAGMA(unroll times)
#define RR_UNROLL_ALL _Pragma("unroll")
#else
#define RR_UNROLL(times)
#define RR_UNROLL_ALL
#endif

namespace ringreduce {
namespace gpu {

constexpr uint32_t kThreads = 256;      // of a block
constexpr uint32_t kWarp = 32;          // threads that run together
constexpr uint32_t kVectorBytes = 16;   // the longest that a thread loads or stores at once
constexpr uint64_t kMostBlocks = 0x7fffffff;
constexpr int kInvalidValue = 1;        // cudaErrorInvalidValue

template <typename T>
RR_HD T least(T a, T b) {
  return a < b ? a : b;
}

// Some elements that are loaded or stored by one instruction.
template <typename T, uint32_t kCount>
struct alignas(sizeof(T) * kCount) Group {
  T element[kCount];
};

// A GPU stops a program that loads or stores a group elsewhere; so does the emulation.
RR_HD void check_aligned(const void* address, uint32_t bytes) {
#if !defined(__CUDA_ARCH__)
  if (reinterpret_cast<uintptr_t>(address) % bytes) __builtin_trap();
#else
  (void)address, (void)bytes;
#endif
}

template <typename T, uint32_t kCount>
RR_HD Group<T, kCount> load_group(const void* from) {
  Group<T, kCount> group;
  check_aligned(from, sizeof(group));
  memcpy(&group, __builtin_assume_aligned(from, sizeof(group)), sizeof(group));
  return group;
}

template <typename T, uint32_t kCount>
RR_HD void store_group(void* to, const Group<T, kCount>& group) {
  check_aligned(to, sizeof(group));
  memcpy(__builtin_assume_aligned(to, sizeof(group)), &group, sizeof(group));
}

// Elements of `size` bytes from `address` to the next multiple of `align` bytes.
RR_HD uint32_t elements_to(const void* address, uint32_t align, uint32_t size) {
  return static_cast<uint32_t>(-reinterpret_cast<uintptr_t>(address) % align) / size;
}

}  // namespace gpu
}  // namespace ringreduce
