"""Adding and removing process sets while the library runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from ringreduce._core import Engine
from ringreduce._runtime import running, segments
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.errors import RingreduceError
from ringreduce.objects import allgather_object

_EXCHANGE = "ringreduce.process_set"


def add_process_set(process_set: ProcessSet | Iterable[int] | Any) -> ProcessSet:
    """Register a set of ranks. Collective over all ranks, members or not.

    Args:
        process_set: a ProcessSet, ranks, or an mpi4py communicator; the same on all ranks
            (of a communicator, each rank's own).

    Returns the registered ProcessSet, the same object if one was given.

    Raises ValueError for ranks out of range and for a set that is registered already;
    RingreduceError if the ranks disagree about the set, or if any of them cannot add it. Then
    no rank has it, and a next set may get its number.
    """
    context = running.require()
    try:
        chosen = process_set if isinstance(process_set, ProcessSet) else ProcessSet(process_set)
        ranks = _requested_ranks(context, chosen)
    except (ValueError, TypeError) as error:
        _agree(f"{type(error).__name__}: {error}")
        raise
    _agree(f"add {ranks}")
    set_id = next(i for i in range(1, len(context.sets) + 2) if i not in context.sets)
    nbytes, reserve = Engine.segment_bytes([context.host_of[r] for r in ranks], context.host_of[context.rank])
    segment = segments.share(nbytes, context.rank, ranks, context.host_of, _exchange, reserve).segment
    _on_all_ranks(context, set_id, lambda: None if segment is None else context.engine.add_set(set_id, ranks, segment))
    _on_all_ranks(context, set_id, lambda: context.engine.split_gpu(set_id).wait())
    # Every member has the set: only now may anybody submit to it.
    context.sets[set_id] = chosen
    chosen.bind(set_id, ranks, None if segment is None else context.engine, context.rank)
    return chosen


def remove_process_set(process_set: ProcessSet) -> bool:
    """Take a set out of use. Collective over all ranks; none may have an operation on it.

    Returns False for the global set and for a set that is not registered, else True. The
    set's number may be given to the next set that is added.

    Raises ValueError on all ranks if any has an operation on the set that is not done, or has sent a
    message on it that was not received: wait for it, and call again. Until then the set is as usable as before.
    """
    context = running.require()
    set_id = process_set.process_set_id
    if not set_id or context.sets.get(set_id) is not process_set:
        return False
    _agree(f"remove {process_set.registered_ranks()}")
    busy = [rank for rank, idle in enumerate(_exchange(context.engine.set_idle(set_id))) if not idle]
    if busy:
        raise ValueError(
            f"process_set: {process_set} still has operations in flight on rank(s) {busy}; wait for them, "
            "then remove it"
        )
    lost = _not_received(_exchange(context.engine.message_counts(set_id)))
    if lost:
        raise ValueError(
            f"process_set: {process_set} still has messages in flight: {lost}; receive them, then remove it"
        )
    member = process_set.engine is not None
    if member:
        context.engine.remove_set(set_id)
    del context.sets[set_id]
    process_set.unbind()
    return True


def _not_received(counts: list[tuple[dict[int, int], dict[int, int]]]) -> str:
    """Of which messages each rank has sent and received: those that their receivers have not asked for."""
    return "; ".join(
        f"of {count} that rank {source} has sent to rank {dest}, {counts[dest][1].get(source, 0)} were received"
        for source, (sent, _) in enumerate(counts)
        for dest, count in sent.items()
        if counts[dest][1].get(source, 0) != count
    )


def _exchange(item: Any) -> list[Any]:
    return allgather_object(item, name=_EXCHANGE)


def _on_all_ranks(context: running.Context, set_id: int, step: Callable[[], object]) -> None:
    """One step in adding a set. If it fails on any rank, the set is taken back on all, and all raise."""
    problem = None
    try:
        step()
    except (ValueError, RuntimeError) as error:
        problem = f"rank {context.rank}: {error}"
    problems = [one for one in _exchange(problem) if one is not None]
    if problems:
        with contextlib.suppress(ValueError, RuntimeError):  # it was not added here
            context.engine.remove_set(set_id)
        raise RingreduceError("the process set cannot be added: " + "; ".join(problems))


def _requested_ranks(context: running.Context, process_set: ProcessSet) -> list[int]:
    ranks = process_set.ranks
    if process_set.mpi_comm is not None:
        ranks = _communicator_ranks(context, process_set.mpi_comm)
    if not ranks:
        raise ValueError("process_set: a set has one rank at least")
    if not 0 <= ranks[0] <= ranks[-1] < context.size:
        raise ValueError(f"process_set: ranks are 0 to {context.size - 1}, got {ranks}")
    for other in context.sets.values():
        if other.ranks == ranks:
            raise ValueError(f"process_set: {other} is registered already with the same ranks")
    return ranks


def _communicator_ranks(context: running.Context, comm: Any) -> list[int]:
    """The ranks of a communicator that its members give; others give MPI.COMM_NULL."""
    mine: list[int] | None = sorted(comm.allgather(context.rank)) if comm else None
    given = [ranks for ranks in _exchange(mine) if ranks is not None]
    if not given or any(ranks != given[0] for ranks in given):
        raise RingreduceError(f"the ranks gave communicators with different members: {given}")
    agreed: list[int] = given[0]
    return agreed


def _agree(mine: str) -> None:
    """RingreduceError on all ranks unless all say the same: what they ask for, or why they refuse."""
    said = _exchange(mine)
    if any(one != mine for one in said):
        listed = "; ".join(f"rank {rank}: {one}" for rank, one in enumerate(said))
        raise RingreduceError(f"the ranks disagree about a process set: {listed}")
