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
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ringreduce import _check, _submit
from ringreduce.errors import RingreduceError
from ringreduce.process_set import ProcessSet, global_process_set

_SHOWN = 400  # characters of one rank's problem
_RANKS_SHOWN = 4


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
    _check.op_name(name)
    label = name or "ringreduce.broadcast_object"
    is_root = process_set.set_rank("root_rank", root_rank) == process_set.rank()
    data, problem = _pickled(obj) if is_root else (bytearray(), None)
    length = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
    _submit.broadcast(length, root_rank, True, f"{label}.length", process_set, wake=False).wait()
    data = data if is_root else bytearray(int(length))
    if data:
        _submit.broadcast(_as_tensor(data), root_rank, True, f"{label}.data", process_set, wake=False).wait()
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
    _check.op_name(name)
    label = name or "ringreduce.allgather_object"
    data, problem = _pickled(obj)
    everyone = []
    for rank, part in zip(process_set.registered_ranks(), gather_bytes(data, label, process_set), strict=True):
        found, unreadable = _unpickled(part, rank) if part else (None, None)
        everyone.append(found)
        problem = problem or unreadable
    raise_together("allgather_object", problem, f"{label}.outcome", process_set)
    return everyone


def raise_together(what: str, problem: Exception | None, label: str, process_set: ProcessSet) -> None:
    """Every rank of the set calls it with what went wrong there, or None; all raise if one did.

    That is one RingreduceError with the same text everywhere, whose cause is the rank's own exception.
    A caller's mistake (ValueError, TypeError) that all ranks have made is raised as it is.
    """
    said = gather_bytes(described(problem), label, process_set)
    raise_said(what, problem, said, process_set)


def described(problem: Exception | None) -> bytes:
    """What a rank tells the others about its problem; nothing if it has none."""
    if problem is None:
        return b""
    text = str(problem) or type(problem).__name__
    return (text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...").encode("utf-8", "backslashreplace")


def raise_said(what: str, problem: Exception | None, said: Sequence[bytes], process_set: ProcessSet) -> None:
    """`raise_together`, once what each rank `described` is known."""
    ranks = process_set.registered_ranks()
    failed = [f"rank {rank}: {text.decode()}" for rank, text in zip(ranks, said, strict=True) if text]
    if not failed:
        return
    if isinstance(problem, (ValueError, TypeError)) and len(failed) == len(said):
        raise problem
    more = f"; and {len(failed) - _RANKS_SHOWN} more ranks" if len(failed) > _RANKS_SHOWN else ""
    cause = problem.__cause__ if isinstance(problem, RingreduceError) else problem
    raise RingreduceError(f"{what}: {'; '.join(failed[:_RANKS_SHOWN])}{more}") from cause


def gather_bytes(data: bytes | bytearray, label: str, process_set: ProcessSet) -> list[bytes]:
    """The bytes of every rank of the set, which may be none."""
    gathered, lengths = _submit.allgather(_as_tensor(data), label, process_set, wake=False).wait()
    everything = bytearray(gathered.numel())
    _as_tensor(everything).copy_(gathered)
    parts = memoryview(everything)
    ends = accumulate(lengths)
    return [bytes(parts[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _as_tensor(data: bytes | bytearray) -> Tensor:
    """A uint8 tensor over the bytes themselves; of bytes, over a copy."""
    if not data:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)


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
