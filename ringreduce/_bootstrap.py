"""init and shutdown: from MPI (or nothing, for one process) to a running engine.

    MPI ──► who is on which host ──► shared segment a host ──► Engine ──► process sets

MPI is needed for the meeting only; with one host the engine never calls it again. Every
step that may fail on one rank alone is followed by an exchange, so that all ranks fail
together and with the same text.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from ringreduce import _context, _launcher, _segments
from ringreduce._core import Engine
from ringreduce._membership import add_process_set
from ringreduce.errors import RingreduceError
from ringreduce.process_set import ProcessSet, global_process_set

_CLOSE_TIMEOUT_S = 10.0  # how long shutdown lets the engine's thread finish what it does
_initialised_by: int | None = None  # pid that registered the exit handler
_finalizes_mpi = False


class _Rank(NamedTuple):
    """What a rank tells all others when they meet."""

    host_id: str | None  # RINGREDUCE_HOST_ID
    shm_leader: int  # first rank with which MPI says it shares memory
    hostname: str
    pid: int
    cores: frozenset[int]


def init(comm: Any = None, process_sets: Iterable[ProcessSet | Iterable[int]] | None = None) -> None:
    """Start the library: collective over all ranks. A second call while running does nothing.

    Args:
        comm: an mpi4py communicator (duplicated, not kept), or a list of MPI world ranks
            that includes this one; by default all ranks that the launcher started.
        process_sets: sets to register at once, as by `add_process_set`, the same on all ranks.

    Raises RingreduceError if the launcher started another number of ranks than MPI sees, or
    if the ranks of a host cannot share memory; ValueError for a bad `comm`.
    """
    if _context.current is not None:
        return
    if _context.forked_from is not None:
        _context.raise_not_running()
    comm = _communicator(comm)
    try:
        _context.current = _meet(comm)
    except BaseException:
        _release(comm)
        raise
    for process_set in process_sets or ():
        add_process_set(process_set)


def shutdown() -> None:
    """Stop the library: outstanding operations fail. `init` may be called again afterwards."""
    context = _context.current
    if context is None:
        return
    _stop(context)
    _release(context.comm)


def _stop(context: _context.Context) -> None:
    _context.current = None
    for process_set in context.sets.values():
        process_set.unbind()
    context.engine.close(_CLOSE_TIMEOUT_S)


def _release(comm: Any) -> None:
    if comm is not None:
        comm.Free()


def _communicator(comm: Any) -> Any:
    """A communicator of our own over the ranks that take part; None for one process alone."""
    mpi, reason = _load_mpi()
    if mpi is None:
        if comm is not None:
            raise ValueError(f"comm: MPI cannot be used here ({reason})")
        _launcher.check_size(1, os.environ, f"MPI cannot be used here ({reason})")
        return None
    world = mpi.COMM_WORLD
    if comm is None:
        library = mpi.Get_library_version().split("\n")[0].split(",")[0]
        _launcher.check_size(
            world.size,
            os.environ,
            f"mpi4py uses {library}; start the program with the mpirun of the same MPI",
        )
        ours = world.Dup()
    elif isinstance(comm, mpi.Intracomm):
        ours = comm.Dup()
    else:
        ours = _subset(world, comm)
    ours.Set_errhandler(mpi.ERRORS_RETURN)
    return ours


def _subset(world: Any, ranks: Any) -> Any:
    try:
        chosen = sorted(ranks)
    except TypeError:
        chosen = []
    if world.rank not in chosen or not all(isinstance(r, int) for r in chosen):
        raise ValueError(
            "comm: expected an mpi4py intracommunicator or a list of MPI world ranks with "
            f"this one ({world.rank}), got {ranks!r}"
        )
    return world.Create_group(world.group.Incl(chosen))


def _load_mpi() -> tuple[Any, str]:
    """mpi4py.MPI, initialised, or None and the reason why there is none."""
    global _finalizes_mpi
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
    _finalizes_mpi |= ours
    return MPI, ""


def _meet(comm: Any) -> _context.Context:
    rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
    exchange = comm.allgather if comm is not None else lambda item: [item]
    everyone: list[_Rank] = exchange(_introduce(comm, rank))
    host_of = _number_hosts(everyone)
    local = [r for r in range(size) if host_of[r] == host_of[rank]]
    shared = _segments.share(Engine.segment_bytes(len(local)), rank, range(size), host_of, exchange)
    # Ranks that cannot reach each other's /proc do not know each other's pids either.
    pids = [everyone[r].pid for r in local] if shared.kind == "memfd" else []
    assert shared.segment is not None
    crowding = _crowding(everyone)
    engine = problem = None
    try:
        engine = Engine(
            rank, size, host_of, shared.segment,
            mpi_comm=_handle_address(comm) if max(host_of) > 0 else 0,
            oversubscribed=max(crowding.values()) > 1,
            peer_pids=pids,
            spare_cores=crowding[everyone[rank].hostname] <= 0.5,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        problem = f"rank {rank}: {error}"
    problems = [p for p in exchange(problem) if p is not None]
    if engine is None or problems:
        raise RingreduceError("the engine cannot be started: " + "; ".join(problems))
    context = _context.Context(engine, rank, size, host_of, comm)
    context.sets[0] = global_process_set
    global_process_set.bind(0, list(range(size)), engine)
    _register_exit()
    return context


def _introduce(comm: Any, rank: int) -> _Rank:
    leader = rank
    if comm is not None:
        from mpi4py import MPI

        neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
        leader = neighbours.bcast(rank)
        neighbours.Free()
    return _Rank(
        os.environ.get("RINGREDUCE_HOST_ID"), leader, socket.gethostname(), os.getpid(),
        frozenset(os.sched_getaffinity(0)),
    )  # fmt: skip


def _number_hosts(everyone: list[_Rank]) -> list[int]:
    """World rank -> host, numbered by first appearance."""
    without = [r for r, one in enumerate(everyone) if one.host_id is None]
    if without and len(without) < len(everyone):
        raise RingreduceError(
            f"RINGREDUCE_HOST_ID is not set on rank(s) {without}, but on others: set it on all ranks or on none"
        )
    keys = [one.shm_leader if one.host_id is None else one.host_id for one in everyone]
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def _crowding(everyone: list[_Rank]) -> dict[str, float]:
    """Ranks for each core, by machine (pretended hosts share a machine)."""
    result = {}
    for name in {one.hostname for one in everyone}:
        there = [one for one in everyone if one.hostname == name]
        result[name] = len(there) / len(frozenset().union(*(one.cores for one in there)))
    return result


def _handle_address(comm: Any) -> int:
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise RingreduceError(
            "several hosts need MPI_THREAD_SERIALIZED at least: let mpi4py initialise MPI, "
            "or ask for MPI_THREAD_MULTIPLE"
        )
    return int(MPI._addressof(comm))


def _register_exit() -> None:
    global _initialised_by
    if _initialised_by is None:
        _initialised_by = os.getpid()
        atexit.register(_at_exit)


def _at_exit() -> None:
    """The engine's thread ends before MPI does. A forked child leaves both alone."""
    if os.getpid() != _initialised_by:
        return
    if _context.current is not None:
        _stop(_context.current)
    if _finalizes_mpi:
        from mpi4py import MPI

        if not MPI.Is_finalized():
            MPI.Finalize()
