"""Adding and removing process sets while the library runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ringreduce import _context, _segments
from ringreduce._core import Engine
from ringreduce.errors import RingreduceError
from ringreduce.objects import allgather_object
from ringreduce.process_set import ProcessSet

_EXCHANGE = "ringreduce.process_set"


def add_process_set(process_set: ProcessSet | Iterable[int] | Any) -> ProcessSet:
    """Register a set of ranks. Collective over all ranks, members or not.

    Args:
        process_set: a ProcessSet, ranks, or an mpi4py communicator; the same on all ranks
            (of a communicator, each rank's own).

    Returns the registered ProcessSet, the same object if one was given.

    Raises ValueError for ranks out of range and for a set that is registered already;
    RingreduceError if the ranks disagree about the set.
    """
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    context = _context.require()
    ranks = _requested_ranks(context, process_set)
    _agree(context, "add", ranks)
    set_id = next(i for i in range(1, len(context.sets) + 2) if i not in context.sets)
    nbytes = Engine.segment_bytes([context.host_of[r] for r in ranks], context.host_of[context.rank])
    shared = _segments.share(
        nbytes, context.rank, ranks, context.host_of,
        lambda item: allgather_object(item, name=_EXCHANGE),
    )  # fmt: skip
    member = shared.segment is not None
    if shared.segment is not None:
        context.engine.add_set(set_id, ranks, shared.segment)
    context.engine.split_gpu(set_id).wait()
    context.sets[set_id] = process_set
    process_set.bind(set_id, ranks, context.engine if member else None)
    # Nobody submits to the set before every member has it.
    allgather_object(None, name=_EXCHANGE)
    return process_set


def remove_process_set(process_set: ProcessSet) -> bool:
    """Take a set out of use. Collective over all ranks; none may have an operation on it.

    Returns False for the global set and for a set that is not registered, else True. The
    set's number may be given to the next set that is added.
    """
    context = _context.require()
    set_id = process_set.process_set_id
    if not set_id or context.sets.get(set_id) is not process_set:
        return False
    _agree(context, "remove", process_set.registered_ranks())
    del context.sets[set_id]
    member = process_set.engine is not None
    process_set.unbind()
    if member:
        context.engine.remove_set(set_id)
    return True


def _requested_ranks(context: _context.Context, process_set: ProcessSet) -> list[int]:
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


def _communicator_ranks(context: _context.Context, comm: Any) -> list[int]:
    """The ranks of a communicator that its members give; others give MPI.COMM_NULL."""
    mine: list[int] | None = sorted(comm.allgather(context.rank)) if comm else None
    given = [ranks for ranks in allgather_object(mine, name=_EXCHANGE) if ranks is not None]
    if not given or any(ranks != given[0] for ranks in given):
        raise RingreduceError(f"the ranks gave communicators with different members: {given}")
    agreed: list[int] = given[0]
    return agreed


def _agree(context: _context.Context, action: str, ranks: list[int]) -> None:
    requests = allgather_object((action, ranks), name=_EXCHANGE)
    if any(request != (action, ranks) for request in requests):
        said = "; ".join(f"rank {r}: {what} {which}" for r, (what, which) in enumerate(requests))
        raise RingreduceError(f"the ranks disagree about a process set: {said}")
