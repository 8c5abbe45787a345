"""Prints, for each rank, the host that MPI puts it on, after sending 4 MiB from rank 0 to all."""

import socket

from mpi4py import MPI

MIB = 1 << 20

world = MPI.COMM_WORLD
here = world.Split_type(MPI.COMM_TYPE_SHARED)
world.Bcast(bytearray(4 * MIB), root=0)
lines = world.gather(f"rank {world.rank} is {here.rank} of {here.size} on {socket.gethostname()}")
if world.rank == 0:
    print("\n".join(lines))
