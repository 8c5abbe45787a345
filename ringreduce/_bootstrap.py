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
from collections.abc import Iterable
from typing import Any, NamedTuple

from ringreduce import _context, _mpi, _placement, _segments
from ringreduce._core import Engine, load_settings
from ringreduce._gpu_report import Report, Seat
from ringreduce._membership import add_process_set
from ringreduce.errors import RingreduceError
from ringreduce.process_set import ProcessSet, global_process_set

_CLOSE_TIMEOUT_S = 10.0  # how long shutdown lets the engine's thread finish what it does
_initialised_by: int | None = None  # pid that registered the exit handler


class _Rank(NamedTuple):
    """What a rank tells all others when they meet."""

    host_id: str | None  # RINGREDUCE_HOST_ID
    shm_leader: int  # first rank with which MPI says it shares memory
    hostname: str
    pid: int
    cores: frozenset[int]
    settings: tuple[tuple[str, int | str], ...]  # those that must agree
    problem: str | None  # a setting that cannot be read
    gpus: Report | None  # None: no GPU


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
    comm = _mpi.communicator(comm)
    _mpi.free_retired(comm)
    try:
        _context.current = _meet(comm)
    except BaseException:
        _mpi.retire(comm)
        raise
    for process_set in process_sets or ():
        add_process_set(process_set)


def shutdown() -> None:
    """Stop the library: outstanding operations fail. `init` may be called again afterwards."""
    context = _context.current
    if context is None:
        return
    _stop(context)
    _mpi.retire(context.comm)


def _stop(context: _context.Context) -> None:
    _context.current = None
    for process_set in context.sets.values():
        process_set.unbind()
    context.engine.close(_CLOSE_TIMEOUT_S)


def _meet(comm: Any) -> _context.Context:
    rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
    exchange = comm.allgather if comm is not None else lambda item: [item]
    everyone: list[_Rank] = exchange(_introduce(comm, rank))
    _check_settings(everyone)
    host_of = _number_hosts(everyone)
    local = [r for r in range(size) if host_of[r] == host_of[rank]]
    shared = _segments.share(Engine.segment_bytes(host_of, host_of[rank]), rank, range(size), host_of, exchange)
    # Ranks that cannot reach each other's /proc do not know each other's pids either.
    pids = [everyone[r].pid for r in local] if shared.kind == "memfd" else []
    assert shared.segment is not None
    crowding = _crowding(everyone)
    engine = problem = None
    try:
        engine = Engine(
            rank, size, host_of, shared.segment,
            mpi_comm=_mpi.handle_address(comm) if max(host_of) > 0 else 0,
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
    if everyone[rank].gpus is not None:
        _placement.settle(rank, _seats(everyone, host_of))
    _register_exit()
    return context


def _introduce(comm: Any, rank: int) -> _Rank:
    leader = rank
    if comm is not None:
        from mpi4py import MPI

        neighbours = comm.Split_type(MPI.COMM_TYPE_SHARED)
        leader = neighbours.bcast(rank)
        neighbours.Free()
    settings: tuple[tuple[str, int | str], ...] = ()
    problem = None
    try:
        settings = load_settings()
    except ValueError as error:
        problem = str(error)
    return _Rank(
        os.environ.get("RINGREDUCE_HOST_ID"), leader, socket.gethostname(), os.getpid(),
        frozenset(os.sched_getaffinity(0)), settings, problem, _placement.look(os.environ),
    )  # fmt: skip


def _check_settings(everyone: list[_Rank]) -> None:
    for rank, one in enumerate(everyone):
        if one.problem is not None:
            raise ValueError(f"rank {rank}: {one.problem}")
    for rank, one in enumerate(everyone):
        for (name, value), (_, first) in zip(one.settings, everyone[0].settings, strict=True):
            if value != first:
                raise RingreduceError(
                    f"{name} is {first} on rank 0 and {value} on rank {rank}: set it alike on all ranks "
                    "(mpirun passes a variable on to other hosts only when told to, as with -x or -genv)"
                )


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


def _seats(everyone: list[_Rank], host_of: list[int]) -> list[Seat]:
    taken = [0] * (max(host_of) + 1)
    seats = []
    for rank, (host, one) in enumerate(zip(host_of, everyone, strict=True)):
        seats.append(Seat(rank, host, one.hostname, taken[host], one.cores, one.gpus))
        taken[host] += 1
    return seats


def _crowding(everyone: list[_Rank]) -> dict[str, float]:
    """Ranks for each core, by machine (pretended hosts share a machine)."""
    result = {}
    for name in {one.hostname for one in everyone}:
        there = [one for one in everyone if one.hostname == name]
        result[name] = len(there) / len(frozenset().union(*(one.cores for one in there)))
    return result


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
    _mpi.finalize()
