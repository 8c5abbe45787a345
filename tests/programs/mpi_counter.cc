// Preloaded into a rank, it counts the calls of those MPI functions that ringreduce knows
// (csrc/net/mpi_abi.h), whoever makes them, and passes them on to MPI's profiling interface.
// Its file is named libmpi*, so that ringreduce, which looks for MPI by that name, finds it first.
//
// A handle is a pointer or a number, depending on the MPI: both travel in a register, as a long does.
#include <atomic>

extern "C" {

std::atomic<long> mpi_sends, mpi_receives, mpi_tests, mpi_others;

int PMPI_Isend(long, int, long, int, int, long, long);
int PMPI_Irecv(long, int, long, int, int, long, long);
int PMPI_Test(long, long, long);
int PMPI_Iprobe(int, int, long, long, long);
int PMPI_Cancel(long);
int PMPI_Request_free(long);
int PMPI_Error_string(int, long, long);
int PMPI_Finalized(long);

int MPI_Isend(long data, int count, long type, int to, int tag, long comm, long request) {
  ++mpi_sends;
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}
int MPI_Irecv(long data, int count, long type, int from, int tag, long comm, long request) {
  ++mpi_receives;
  return PMPI_Irecv(data, count, type, from, tag, comm, request);
}
int MPI_Test(long request, long done, long status) {
  ++mpi_tests;
  return PMPI_Test(request, done, status);
}
int MPI_Iprobe(int from, int tag, long comm, long found, long status) {
  ++mpi_tests;
  return PMPI_Iprobe(from, tag, comm, found, status);
}
int MPI_Cancel(long request) {
  ++mpi_others;
  return PMPI_Cancel(request);
}
int MPI_Request_free(long request) {
  ++mpi_others;
  return PMPI_Request_free(request);
}
int MPI_Error_string(int code, long text, long length) {
  ++mpi_others;
  return PMPI_Error_string(code, text, length);
}
int MPI_Finalized(long flag) {
  ++mpi_others;
  return PMPI_Finalized(flag);
}
}
