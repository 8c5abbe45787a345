"""Prints the size of MPI's world: tells whether a launcher and mpi4py's MPI belong together."""

from mpi4py import MPI

print("size", MPI.COMM_WORLD.size, flush=True)
