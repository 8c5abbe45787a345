// Reads a torch tensor in one call: through DLPack's C exchange API, which torch offers from 2.10 on
// (DLPack 1.3, https://dmlc.github.io/dlpack/latest/c_api.html). Only plain C crosses, so one build
// serves every torch. Asking the tensor's Python attributes one by one takes ten times as long.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>

#include "common/dtype.h"

namespace ringreduce {

// `tensor_type`: torch.Tensor. Without the API no tensor is plain.
void use_exchange_api(nanobind::type_object tensor_type);

struct PlainTensor {
  char* data = nullptr;
  size_t bytes = 0;
  DType dtype = DType::kUint8;
  nanobind::dlpack::dtype type = {};  // the same, as DLPack has it
  const int64_t* shape = nullptr;
  size_t dims = 0;
};

// Fills in where the tensor's numbers are, of which type and shape. False unless it is a torch.Tensor
// (no subclass) on the CPU, contiguous, of real numbers, and without requires_grad.
bool read_plain_tensor(nanobind::handle tensor, PlainTensor* plain);

// Whether new tensors can be made, of rows like those of `like`.
bool can_make_tensors(const PlainTensor& like);
// One of `rows` rows, in memory of torch's own. None where there is no memory.
nanobind::object make_plain_tensor(const PlainTensor& like, int64_t rows, PlainTensor* made);
// The same of `memory`, which it keeps.
nanobind::object make_plain_tensor(const PlainTensor& like, int64_t rows, std::shared_ptr<char> memory);

}  // namespace ringreduce
