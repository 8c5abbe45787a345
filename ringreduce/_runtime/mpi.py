"""MPI as far as init, shutdown and the end of the process need it, through mpi4py.

    load ──► communicator (a duplicate of our own) ──► retire ──► freed by the next init

A communicator is not freed at shutdown: a peer's last message may not have been received,
or may still be on its way, and MPI gives a freed communicator's number to the next one,
which would get that message. At the next init all ranks are past it: then what is left
is received, and the communicator freed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ringreduce._runtime import launcher
from ringreduce.errors import RingreduceError

_retired: list[Any] = []
_finalizes = False  # MPI ends when our exit handler says so
_lost = ""  # why MPI is not used any more: a rank is lost, and MPI would wait for it


def load() -> tuple[Any, str]:
    """mpi4py.MPI, initialised, or None and the reason why there is none."""
    global _finalizes
    try:
        import mpi4py

        # mpi4py would finalise MPI at the end of any process with its memory, forked
        # children included. We do it in an exit handler that knows the process, unless
        # the program has imported MPI itself and left that to mpi4py.
        ours = "mpi4py.MPI" not in sys.modules and mpi4py.rc.finalize is not False
        if ours:
            mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        return None, str(error).split("\n")[0] + "; install mpi4py and an MPI library"
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    _finalizes |= ours
    return MPI, ""


def give_up(why: str) -> None:
    """A rank is lost: from here on MPI might wait for it for ever."""
    global _lost
    _lost = why


def finalize() -> None:
    """End MPI, if it is ours to end. Where it is not, and would wait for a lost rank, end the process."""
    if not _lost and not _finalizes:
        return
    from mpi4py import MPI

    if MPI.Is_finalized():
        return
    if not _lost:
        MPI.Finalize()
    elif not _finalizes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def communicator(comm: Any) -> Any:
    """A communicator of our own over the ranks of `comm`; None for one process without MPI.

    `comm` is an mpi4py communicator, a list of MPI world ranks, or None for all ranks, whose
    number is then compared with what the launcher says.
    """
    if _lost and comm is None:
        raise RingreduceError(f"ringreduce cannot start again in a job that has lost a rank: {_lost}")
    launcher.check_mark(os.environ)
    mpi, reason = load()
    if mpi is None:
        if comm is not None:
            raise ValueError(f"comm: MPI cannot be used here ({reason})")
        launcher.check_size(1, os.environ, f"MPI cannot be used here ({reason})")
        return None
    launcher.mark(os.environ)
    world = mpi.COMM_WORLD
    if comm is None:
        library = mpi.Get_library_version().split("\n")[0].split(",")[0]
        launcher.check_size(
            world.size,
            os.environ,
            f"mpi4py uses {library}; start the program with the mpirun of the same MPI",
        )
        ours = world.Dup()
    elif isinstance(comm, mpi.Intracomm):
        ours = comm.Dup()
    else:
        ours = world.Create_group(_group(world, comm))
    ours.Set_errhandler(mpi.ERRORS_RETURN)
    return ours


def check_same(comm: Any, running: Any) -> None:
    """ValueError unless `comm`, as given to `init`, has the ranks of the communicator that is in use."""
    from mpi4py import MPI

    group = comm.group if isinstance(comm, MPI.Intracomm) else _group(MPI.COMM_WORLD, comm)
    if running is None or MPI.Group.Compare(group, running.group) != MPI.IDENT:
        raise ValueError(f"comm: ringreduce runs already, on other ranks than {comm!r}; call shutdown() first")


def _group(world: Any, ranks: Any) -> Any:
    try:
        chosen = sorted(ranks)
    except TypeError:
        chosen = []
    if world.rank not in chosen or not all(isinstance(rank, int) for rank in chosen):
        raise ValueError(
            "comm: expected an mpi4py intracommunicator or a list of MPI world ranks with "
            f"this one ({world.rank}), got {ranks!r}"
        )
    return world.group.Incl(chosen)


def retire(comm: Any) -> None:
    """At shutdown: the engine uses this communicator no more."""
    if comm is not None:
        _retired.append(comm)


def free_retired(comm: Any) -> None:
    """At init, with all ranks of the new communicator: free those of earlier lives."""
    if not _retired or comm is None:
        return
    from mpi4py import MPI

    # Behind these messages between all pairs nothing of the earlier life is on its way.
    comm.alltoall([None] * comm.size)
    for old in [old for old in _retired if MPI.Comm.Compare(old, comm) == MPI.CONGRUENT]:
        status = MPI.Status()
        while old.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            unread = bytearray(status.Get_count(MPI.BYTE))
            old.Recv([unread, MPI.BYTE], status.Get_source(), status.Get_tag())
        old.Free()
        _retired.remove(old)


def handle_address(comm: Any) -> int:
    """Where the core finds the communicator's handle."""
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise RingreduceError(
            "several hosts need MPI_THREAD_SERIALIZED at least: let mpi4py initialise MPI, "
            "or ask for MPI_THREAD_MULTIPLE"
        )
    return int(MPI._addressof(comm))
