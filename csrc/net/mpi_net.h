// Net over MPI: bytes as MPI_BYTE by Isend and Irecv, completion by Test. Works with any MPI
// that is loaded (mpi_abi.h says how).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "net/mpi_abi.h"
#include "net/net.h"

namespace ringreduce {

// `comm_address` is where the communicator's handle lies: mpi4py.MPI._addressof(comm). It
// should be a duplicate that nothing else uses, with MPI_ERRORS_RETURN set (or MPI ends the
// program at its first error), and outlive the net. Messages longer than `split_bytes` travel
// in pieces of at most that; it must be the same on all ranks and fit in an int.
// kUnsupported where MPI's thread level is too low, kSystem where there is no MPI.
Status make_mpi_net(uintptr_t comm_address, std::unique_ptr<Net>* out, size_t split_bytes = Net::kSplitBytes);

// The same over a given table of functions. For Handle = int and void*.
template <class Handle>
std::unique_ptr<Net> mpi_net_over(const MpiApi<Handle>& api, Handle comm, size_t split_bytes);

}  // namespace ringreduce
