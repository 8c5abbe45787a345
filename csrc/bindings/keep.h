// Python objects that the core keeps alive: the tensors of an operation.
//
// The core lets go of one under the engine's mutex, on any thread. To take the GIL there could deadlock with
// a thread that has it and waits for the engine. So what the core has let go of goes on a list, and whoever
// comes by with the GIL releases it. At the end of the interpreter nobody does: the rest is leaked.
//
//   keep(object) ──► Submission::keep ──► let go ──► list ──► release_kept()
//   with the GIL     in the core         no GIL              with the GIL
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

namespace ringreduce {

// `object` lives as long as the result and its copies. With the GIL.
std::shared_ptr<void> keep(nanobind::handle object);
// Gives the object to the caller; the core keeps it no longer. None if it was given already.
nanobind::object take_kept(void* kept);
// What the core has let go of. With the GIL, and nothing locked: any Python code may run.
void release_kept();

}  // namespace ringreduce
