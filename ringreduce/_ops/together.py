"""Bytes of every rank, and errors that all ranks raise together: what collectives on objects are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ringreduce._ops import submit
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.errors import RingreduceError

_SHOWN = 400  # characters of one rank's problem
_RANKS_SHOWN = 4


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
    gathered, lengths = submit.allgather(as_tensor(data), label, process_set, wake=False).wait()
    everything = bytearray(gathered.numel())
    as_tensor(everything).copy_(gathered)
    parts = memoryview(everything)
    ends = accumulate(lengths)
    return [bytes(parts[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def as_tensor(data: bytes | bytearray) -> Tensor:
    """A uint8 tensor over the bytes themselves; of bytes, over a copy."""
    if not data:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=torch.uint8)
