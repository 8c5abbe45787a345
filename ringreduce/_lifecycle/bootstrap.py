"""init and shutdown: from MPI (or nothing, for one process) to a running engine.

    MPI ──► who is on which host ──► shared segment a host ──► Engine ──► process sets

MPI is needed for the meeting only; with one host the engine never calls it again. Every
step that may fail on one rank alone is followed by an exchange, so that all ranks fail
together and with the same text.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ringreduce._core import Deadline, Engine, load_settings, set_watcher, setting_texts, wire_format
from ringreduce._lifecycle import last_words, lifeline, roster, single_copy
from ringreduce._lifecycle.membership import add_process_set
from ringreduce._placement import placement
from ringreduce._runtime import arrivals, mpi, running, segments, stacks, watcher
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce._version import __version__
from ringreduce.errors import RingreduceError

_CLOSE_TIMEOUT_S = 10.0  # how long shutdown lets the engine's thread finish what it does
_START_TIMEOUT_S = 20.0  # what init has at least: starting MPI takes some seconds
_RAISED_EXIT_S = 2.0  # how long a program that an exception has ended waits for the others to end MPI
_FAILED_EXIT_S = 20.0  # and one that has caught its engine's failure: others may still be at work
set_watcher(watcher)
_failed = False  # an engine of this process: MPI may be in any state
_initialised_by: int | None = None  # pid that registered the exit handler


def init(comm: Any = None, process_sets: Iterable[ProcessSet | Iterable[int]] | None = None) -> None:
    """Start the library: collective over all ranks. A second call while running does nothing.

    Args:
        comm: an mpi4py communicator (duplicated, not kept), or a list of MPI world ranks
            that includes this one; by default all ranks that the launcher started.
        process_sets: sets to register at once, as by `add_process_set`, the same on all ranks.

    Raises RingreduceError if the launcher started another number of ranks than MPI sees, if
    the ranks of a host cannot share memory, if the ranks run different builds, or in a process
    that a rank started and that is none itself; ValueError for a bad `comm`, and while running
    for another `comm` or for `process_sets` that are not registered. If it raises, the library
    is not running. The process ends with a message if other ranks do not come to `init` within
    RINGREDUCE_TIMEOUT (20 s at least), as nothing can interrupt MPI while it waits for them. Before it, and before
    that at RINGREDUCE_STALL_WARNING, those ranks of this host are named that have not come, and what they do.
    """
    chosen = list(process_sets or ())
    if running.current is not None:
        _check_same(running.current, comm, chosen)
        return
    if running.forked_from is not None:
        running.raise_not_running()
    with _deadline() as now:
        now("MPI starts (MPI_Init, MPI_Comm_dup)")
        comm = mpi.communicator(comm)
        now("the ranks meet" + ("" if comm is None else f" (this is rank {comm.rank} of {comm.size})"))
        mpi.free_retired(comm)
        _register_exit()  # what fails from here on fails on all ranks, and all end MPI
        try:
            running.current = _meet(comm)
        except BaseException:
            mpi.retire(comm)
            raise
    try:
        for process_set in chosen:
            add_process_set(process_set)
    except BaseException:
        shutdown()
        raise


def _check_same(context: running.Context, comm: Any, process_sets: list[Any]) -> None:
    """ValueError if a second `init` asks for something else than what runs."""
    if comm is not None:
        mpi.check_same(comm, context.comm)
    registered = list(context.sets.values())
    for one in process_sets:
        wanted = one if isinstance(one, ProcessSet) else ProcessSet(one)
        if wanted not in registered and (wanted is one or wanted.ranks not in [known.ranks for known in registered]):
            raise ValueError(f"process_sets: ringreduce runs already, without {wanted}; call add_process_set()")


@contextlib.contextmanager
def _deadline() -> Iterator[Callable[[str], None]]:
    """Ends the process if the block takes too long; what is yielded says what is being done."""
    with contextlib.suppress(ValueError):  # of a setting: told when the ranks meet
        load_settings()
    texts = dict(setting_texts())
    seconds = max(float(texts["RINGREDUCE_TIMEOUT"]), _START_TIMEOUT_S)
    warning = float(texts["RINGREDUCE_STALL_WARNING"])
    questions = [(warning, arrivals.question(warning, "first"))] if warning < seconds else []
    questions.append((seconds, arrivals.question(seconds, "each")))

    def message(doing: str) -> str:
        return (
            f"ringreduce: init() has waited for {seconds:g} s (RINGREDUCE_TIMEOUT) in process {os.getpid()} on "
            f"{socket.gethostname()} while {doing}: not all ranks of the job call init(), or one has ended or hangs; "
            "MPI cannot be interrupted, so this process ends"
        )

    with arrivals.marked():
        deadline = Deadline(seconds, message("beginning"), questions)
        try:
            yield lambda doing: deadline.say(message(doing))
        finally:
            deadline.cancel()


def shutdown() -> None:
    """Stop the library: outstanding operations fail. `init` may be called again afterwards.

    While an exception is on its way, as in a `finally` clause or at the end of a program that it ends, peers that wait
    for this rank are told which.
    """
    context = running.current
    if context is None:
        return
    _stop(context)
    mpi.retire(context.comm)


def _stop(context: running.Context, ends: bool = False) -> None:
    why = last_words.of_this_process(ends)
    running.current = None
    for process_set in context.sets.values():
        process_set.unbind()
    global _failed
    _failed |= context.engine.failed()
    lost = context.engine.lost()
    if lost and context.comm is not None:
        mpi.give_up(lost)
    context.engine.close(_CLOSE_TIMEOUT_S, why)


def _meet(comm: Any) -> running.Context:
    rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
    exchange = comm.allgather if comm is not None else lambda item: [item]
    roster.check_builds(exchange(f"version {__version__}, wire format {wire_format()}"))
    everyone: list[roster.Rank] = exchange(roster.introduce(comm, rank))
    roster.check_settings(everyone)
    host_of = roster.number_hosts(everyone)
    local = [r for r in range(size) if host_of[r] == host_of[rank]]
    nbytes, reserve = Engine.segment_bytes(host_of, host_of[rank])
    shared = segments.share(nbytes, rank, range(size), host_of, exchange, reserve)
    know_pids = len({everyone[r].pid_namespace for r in local}) == 1
    pids = [everyone[r].pid for r in local] if know_pids else []
    staged_because = single_copy.why_not(everyone, rank, local, exchange)
    line = lifeline.connect(rank, host_of, int(dict(setting_texts())["RINGREDUCE_TREE_ARITY"]), exchange)
    assert shared.segment is not None
    crowding = roster.crowding(everyone)
    engine = problem = None
    try:
        engine = Engine(
            rank, size, host_of, shared.segment,
            mpi_comm=mpi.handle_address(comm) if max(host_of) > 0 else 0,
            oversubscribed=max(crowding.values()) > 1,
            peer_pids=pids,
            processes=[(one.pid, one.hostname) for one in everyone],
            lifeline=line,
            spare_cores=crowding[everyone[rank].hostname] <= 0.5,
            single_copy=not staged_because,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        problem = f"rank {rank}: {error}"
        for file, _, _ in line.links:
            with contextlib.suppress(OSError):
                os.close(file)
    problems = [p for p in exchange(problem) if p is not None]
    if engine is None or problems:
        raise RingreduceError("the engine cannot be started: " + "; ".join(problems))
    context = running.Context(engine, rank, size, host_of, comm, shared.kind, staged_because, pids)
    mark = {
        "rank": rank, "size": size, "local_size": len(local), "segment": shared.segment.offer, "nbytes": nbytes,
    }  # fmt: skip
    stacks.install(mark)
    context.sets[0] = global_process_set
    global_process_set.bind(0, list(range(size)), engine, rank)
    if everyone[rank].gpus is not None:
        placement.settle(rank, roster.seats(everyone, host_of))
    return context


def _register_exit() -> None:
    global _initialised_by
    if _initialised_by is None:
        _initialised_by = os.getpid()
        atexit.register(_at_exit)


def _at_exit() -> None:
    """The engine's thread ends before MPI does. A forked child leaves both alone."""
    if os.getpid() != _initialised_by:
        return
    if running.current is not None:
        _stop(running.current, ends=True)
    seconds = _RAISED_EXIT_S if last_words.of_program() else _FAILED_EXIT_S if _failed else None
    with contextlib.nullcontext() if seconds is None else _bounded(seconds):
        mpi.finalize()


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Ends the process if the block takes long, as MPI waits for ranks that do not come."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be closed, or none
            stream.flush()
    why = "without MPI_Finalize, which waits for other ranks: it has failed, or an exception has ended it"
    deadline = Deadline(seconds, f"ringreduce: process {os.getpid()} on {socket.gethostname()} ends {why}", [])
    try:
        yield
    finally:
        deadline.cancel()
