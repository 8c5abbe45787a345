#include "bindings/keep.h"

#include <atomic>

namespace nb = nanobind;

namespace ringreduce {

namespace {

struct Kept {
  std::atomic<PyObject*> object;
  Kept* next;
};

std::atomic<Kept*> let_go{nullptr};

// Of a shared_ptr: allocates nothing and locks nothing.
void put_on_list(Kept* kept) noexcept {
  kept->next = let_go.load(std::memory_order_relaxed);
  while (!let_go.compare_exchange_weak(kept->next, kept, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

}  // namespace

std::shared_ptr<void> keep(nb::handle object) {
  if (object.is_none()) return nullptr;
  auto* kept = new Kept{{object.ptr()}, nullptr};
  object.inc_ref();
  return std::shared_ptr<Kept>(kept, put_on_list);  // which takes care of it if this throws
}

nb::object take_kept(void* kept) {
  PyObject* object = kept ? static_cast<Kept*>(kept)->object.exchange(nullptr) : nullptr;
  return object ? nb::steal(object) : nb::none();
}

void release_kept() {
  if (!let_go.load(std::memory_order_relaxed)) return;
  for (Kept* at = let_go.exchange(nullptr, std::memory_order_acquire); at;) {
    Kept* next = at->next;
    nb::object released = nb::steal(at->object.load());  // may run anything, this function too
    delete at;
    at = next;
  }
}

}  // namespace ringreduce
