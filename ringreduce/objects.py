"""Python objects between ranks, pickled: as everywhere with pickle, among ranks that trust each other.

A rank that cannot pickle or read an object still takes part, with nothing in the object's place. Every
call ends with an exchange of what went wrong, so that all ranks raise the same error and the next call
begins in step:

    rank 0   (pickled) ─┐                     ┌─► ""              ─┐
    rank 1   (pickled) ─┼─ bytes of objects ──┼─► "cannot be read" ├─ outcomes ──► error on all ranks
    rank 2   (pickled) ─┘                     └─► ""              ─┘
"""

from __future__ import annotations

import pickle
from typing import Any

import torch

from ringreduce._ops import check, submit
from ringreduce._ops.together import as_tensor, gather_bytes, raise_together
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce.errors import RingreduceError


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """The root's object on every rank: a copy, but on the root `obj` itself.

    Args:
        obj: anything that can be pickled; ignored on the other ranks.
        root_rank: global rank of the root.

    Raises RingreduceError on every rank of the set if the object cannot be pickled, or cannot be
    read on a rank.
    """
    process_set.usable_engine()  # a rank that cannot take part says why
    check.op_name(name)
    label = name or "ringreduce.broadcast_object"
    is_root = process_set.set_rank("root_rank", root_rank) == process_set.rank()
    data, problem = _pickled(obj) if is_root else (bytearray(), None)
    length = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
    submit.broadcast(length, root_rank, True, f"{label}.length", process_set, wake=False).wait()
    data = data if is_root else bytearray(int(length))
    if data:
        submit.broadcast(as_tensor(data), root_rank, True, f"{label}.data", process_set, wake=False).wait()
    if data and not is_root:
        obj, problem = _unpickled(data, root_rank)
    raise_together("broadcast_object", problem, f"{label}.outcome", process_set)
    return obj


def allgather_object(obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set) -> list[Any]:
    """A list of every rank's object, in rank order.

    Args:
        obj: anything that can be pickled.

    Raises RingreduceError on every rank of the set if an object cannot be pickled, or cannot be
    read on a rank.
    """
    process_set.usable_engine()
    check.op_name(name)
    label = name or "ringreduce.allgather_object"
    data, problem = _pickled(obj)
    everyone = []
    for rank, part in zip(process_set.registered_ranks(), gather_bytes(data, label, process_set), strict=True):
        found, unreadable = _unpickled(part, rank) if part else (None, None)
        everyone.append(found)
        problem = problem or unreadable
    raise_together("allgather_object", problem, f"{label}.outcome", process_set)
    return everyone


def _pickled(obj: Any) -> tuple[bytearray, Exception | None]:
    """The object's bytes; none, and the reason, if there are none."""
    try:
        return bytearray(pickle.dumps(obj)), None
    except Exception as error:  # of anybody's __reduce__
        return bytearray(), _wrapped("the object cannot be pickled", error)


def _unpickled(data: bytes | bytearray, rank: int) -> tuple[Any, Exception | None]:
    """The object that came from `rank`, or None and the reason."""
    try:
        return pickle.loads(data), None
    except Exception as error:
        return None, _wrapped(f"the object of rank {rank} cannot be read", error)


def _wrapped(what: str, error: Exception) -> RingreduceError:
    problem = RingreduceError(f"{what}: {type(error).__name__}: {error}")
    problem.__cause__ = error
    return problem
