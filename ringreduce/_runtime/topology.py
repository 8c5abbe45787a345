"""Who this process is among the ranks. All raise ValueError before `init` and after `shutdown`."""

from __future__ import annotations

from ringreduce._runtime import running


def is_initialized() -> bool:
    """Whether the library is running in this process."""
    return running.current is not None


def rank() -> int:
    """This process's number, 0 to size() - 1."""
    return running.topology().rank


def size() -> int:
    """Number of ranks."""
    return running.topology().size


def local_rank() -> int:
    """This process's number among the ranks of its host."""
    return running.topology().local_rank


def local_size() -> int:
    """Number of ranks on this host."""
    return running.topology().local_size


def cross_rank() -> int:
    """Number of this host among those that have a rank with this local rank."""
    return running.topology().cross_rank


def cross_size() -> int:
    """Number of hosts that have a rank with this local rank."""
    return running.topology().cross_size
