#include "bindings/tensor.h"

#include <algorithm>
#include <array>
#include <iterator>

namespace nb = nanobind;

namespace ringreduce {

namespace {

// DLPack's DLManagedTensorVersioned.
struct ManagedTensor {
  uint32_t major, minor;
  void* context;
  void (*end)(ManagedTensor* self);
  uint64_t flags;
  nb::dlpack::dltensor tensor;
};

// The beginning of DLPack's DLPackExchangeAPI, which its major version keeps as it is.
struct ExchangeApi {
  struct Header {
    uint32_t major, minor;
    Header* previous;
  } header;
  using SetError = void (*)(void* context, const char* kind, const char* message);
  int (*allocate)(nb::dlpack::dltensor* like, ManagedTensor** tensor, void* context, SetError set_error);
  void* export_with_ownership;
  int (*import)(ManagedTensor* tensor, void** object);
  int (*read)(void* object, nb::dlpack::dltensor* out);  // without ownership
};
constexpr uint32_t kMajor = 1;
constexpr int32_t kOnCpu = 1;  // kDLCPU

const ExchangeApi* exchange = nullptr;
PyTypeObject* tensor_type = nullptr;
PyObject* requires_grad = nullptr;  // the attribute's name
PyObject* is_neg = nullptr;

// Takes over an attribute's value or a method's result.
bool is_false(PyObject* value) {
  if (!value) PyErr_Clear();
  Py_XDECREF(value);
  return value == Py_False;
}

bool find_dtype(nb::dlpack::dtype type, DType* dtype) {
  using Code = nb::dlpack::dtype_code;
  static constexpr Code kCodes[] = {Code::UInt, Code::Int, Code::Float, Code::Bfloat};  // by family, those of real numbers
  for (int i = 0; i < kDTypeCount; ++i) {
    *dtype = static_cast<DType>(i);
    const size_t family = static_cast<size_t>(info(*dtype).family);
    if (family < std::size(kCodes) && static_cast<uint8_t>(kCodes[family]) == type.code &&
        info(*dtype).size * 8 == type.bits && type.lanes == 1)
      return true;
  }
  return false;
}

// Strides of dimensions of one element mean nothing.
bool is_contiguous(const nb::dlpack::dltensor& t, size_t* count) {
  *count = 1;
  bool contiguous = true;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides && t.strides[i] != static_cast<int64_t>(*count)) contiguous = false;
    *count *= static_cast<size_t>(t.shape[i]);
  }
  return contiguous || *count == 0;
}

constexpr size_t kMostDims = 16;
using Extents = std::array<int64_t, kMostDims>;

Extents with_rows(const PlainTensor& like, int64_t rows) {
  Extents shape{};
  std::copy_n(like.shape, like.dims, shape.data());
  shape[0] = rows;
  return shape;
}

}  // namespace

void use_exchange_api(nb::type_object type) {
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return;
  const auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api->header.major != kMajor) return;
  tensor_type = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  requires_grad = PyUnicode_InternFromString("requires_grad");
  is_neg = PyUnicode_InternFromString("is_neg");
  if (api->read) exchange = api;  // null where torch cannot do without ownership
}

bool read_plain_tensor(nb::handle tensor, PlainTensor* plain) {
  if (!exchange || Py_TYPE(tensor.ptr()) != tensor_type) return false;
  if (!is_false(PyObject_GetAttr(tensor.ptr(), requires_grad))) return false;
  PyObject* self = tensor.ptr();
  if (!is_false(PyObject_VectorcallMethod(is_neg, &self, 1, nullptr))) return false;  // DLPack does not tell
  nb::dlpack::dltensor t;
  if (exchange->read(tensor.ptr(), &t) != 0) return PyErr_Clear(), false;
  size_t count = 0;
  if (t.device.device_type != kOnCpu || !find_dtype(t.dtype, &plain->dtype) || !is_contiguous(t, &count)) return false;
  if (!t.data && count) return false;  // a FakeTensor, zeros without memory, freed storage
  plain->data = static_cast<char*>(t.data) + t.byte_offset;
  plain->type = t.dtype;
  plain->bytes = count * info(plain->dtype).size;
  plain->shape = t.shape;
  plain->dims = static_cast<size_t>(t.ndim);
  return true;
}

bool can_make_tensors(const PlainTensor& like) {
  return exchange && exchange->allocate && exchange->import && like.dims && like.dims <= kMostDims;
}

nb::object make_plain_tensor(const PlainTensor& like, int64_t rows, PlainTensor* made) {
  Extents shape = with_rows(like, rows);
  nb::dlpack::dltensor wanted{};
  wanted.device = {kOnCpu, 0};
  wanted.dtype = like.type;
  wanted.ndim = static_cast<int32_t>(like.dims);
  wanted.shape = shape.data();
  ManagedTensor* tensor = nullptr;
  void* object = nullptr;
  const auto ignore = [](void*, const char*, const char*) {};
  if (exchange->allocate(&wanted, &tensor, nullptr, ignore) || exchange->import(tensor, &object)) return PyErr_Clear(), nb::none();
  nb::object result = nb::steal(static_cast<PyObject*>(object));
  return read_plain_tensor(result, made) ? result : nb::none();
}

nb::object make_plain_tensor(const PlainTensor& like, int64_t rows, std::shared_ptr<char> memory) {
  struct Owned {
    ManagedTensor managed;
    Extents shape, strides;
    std::shared_ptr<char> memory;
  };
  auto owned = std::make_unique<Owned>();
  owned->memory = std::move(memory);
  owned->shape = with_rows(like, rows);
  int64_t stride = 1;
  for (size_t i = like.dims; i--; stride *= owned->shape[i]) owned->strides[i] = stride;
  owned->managed.major = kMajor;
  owned->managed.context = owned.get();
  owned->managed.end = [](ManagedTensor* self) { delete static_cast<Owned*>(self->context); };
  owned->managed.tensor = {owned->memory.get(), {kOnCpu, 0}, static_cast<int32_t>(like.dims), like.type, owned->shape.data(), owned->strides.data(), 0};
  void* object = nullptr;
  if (exchange->import(&owned.release()->managed, &object)) throw nb::python_error();
  return nb::steal(static_cast<PyObject*>(object));
}

}  // namespace ringreduce
