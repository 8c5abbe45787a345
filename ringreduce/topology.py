"""Who this process is among the ranks; ringreduce exports it too."""

from ringreduce._runtime.topology import cross_rank, cross_size, is_initialized, local_rank, local_size, rank, size

__all__ = ["cross_rank", "cross_size", "is_initialized", "local_rank", "local_size", "rank", "size"]
