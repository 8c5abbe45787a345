#include "kernels/kernels.h"

#include <atomic>
#include <cstdint>
#include <cstring>

#include "common/log.h"
#include "common/settings.h"
#include "kernels/table.h"

namespace ringreduce {

namespace {

constexpr size_t kLineBytes = 64;

// The table of that name where this build and this CPU have it, else null.
const Table* find(const std::string& name) {
  if (name == "scalar") return &kScalarTable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return &kAvx2Table;
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return &kAvx512Table;
#endif
  return nullptr;
}

const Table* choose() {
  const std::string& wanted = settings().kernels;
  if (const Table* table = find(wanted)) return table;
  const Table* best = &kScalarTable;
  for (const char* name : {"avx2", "avx512"})
    if (const Table* table = find(name)) best = table;
  if (!wanted.empty()) log(kWarning, "this CPU lacks " + wanted + " (RINGREDUCE_KERNELS); using " + best->name);
  return best;
}

std::atomic<const Table*> table_in_use{nullptr};

// Two threads may both choose; they choose alike.
const Table& table() {
  const Table* table = table_in_use.load(std::memory_order_acquire);
  if (!table) table_in_use.store(table = choose(), std::memory_order_release);
  return *table;
}

}  // namespace

Alignment align(const ReduceArgs& args, size_t element_bytes) {
  const size_t head = -reinterpret_cast<uintptr_t>(args.dst[0]) % kLineBytes;
  if (head % element_bytes) return {0, false};
  for (int i = 1; i < args.dst_count; ++i)
    if (-reinterpret_cast<uintptr_t>(args.dst[i]) % kLineBytes != head) return {head, false};
  return {head, true};
}

bool reduce_supported(DType dtype, Reduction reduction) {
  return kScalarTable.reduce[0][static_cast<int>(dtype)][static_cast<int>(reduction)] != nullptr;
}

void reduce(DType dtype, Reduction reduction, const ReduceArgs& args) {
  if (args.count == 0) return;
  const bool scaled = !args.scale.is_identity();
  table().reduce[scaled][static_cast<int>(dtype)][static_cast<int>(reduction)](args, reduction);
}

void copy(void* dst, const void* src, size_t bytes, bool stream) {
  if (bytes == 0) return;  // memcpy may not be given null
  if (stream) {
    table().stream_copy(dst, src, bytes);
  } else {
    std::memcpy(dst, src, bytes);
  }
}

const char* kernels_name() { return table().name; }

bool force_kernels(const std::string& name) {
  const Table* table = find(name);
  if (table) table_in_use.store(table, std::memory_order_release);
  return table != nullptr;
}

}  // namespace ringreduce
