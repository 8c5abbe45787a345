"""Checking that all ranks describe the same parameters, and naming those that differ.

A digest is exchanged first; the descriptions themselves only when the digests differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from ringreduce._ops.together import described, gather_bytes, raise_said
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.errors import RingreduceError

Description = tuple[str, str]  # a parameter's name, and what must agree about it
_SHOWN = 5
_SEPARATOR = b"\n"  # between a digest and a problem


def digest(descriptions: Sequence[Description]) -> str:
    """Short for `descriptions`, in their order."""
    return hashlib.sha256(repr(list(descriptions)).encode()).hexdigest()


def require_same(
    what: str, descriptions: Sequence[Description], problem: Exception | None, process_set: ProcessSet
) -> None:
    """One small message: raise on every rank of the set if one has a `problem`, or describes something else."""
    own = b"" if problem else digest(descriptions).encode()
    gathered = gather_bytes(own + _SEPARATOR + described(problem), "ringreduce.agreement.digest", process_set)
    digests, problems = zip(*(part.split(_SEPARATOR, 1) for part in gathered), strict=True)
    raise_said(what, problem, problems, process_set)
    if any(other != own for other in digests):
        raise_difference(what, descriptions, process_set)


def raise_difference(what: str, descriptions: Sequence[Description], process_set: ProcessSet) -> None:
    """On every rank of the set: raise a RingreduceError that names what differs, and where."""
    everyone = map(json.loads, gather_bytes(json.dumps(descriptions).encode(), "ringreduce.agreement", process_set))
    ranks = process_set.registered_ranks()
    raise RingreduceError(f"{what}: " + difference(dict(zip(ranks, everyone, strict=True))))


def difference(by_rank: dict[int, Sequence[Description]]) -> str:
    """What differs between the ranks, by parameter."""
    names = dict.fromkeys(name for said in by_rank.values() for name, _ in said)
    lines = []
    for name in names:
        said_by: dict[str, list[int]] = {}
        for rank, said in by_rank.items():
            said_by.setdefault(dict(said).get(name, "absent"), []).append(rank)
        if len(said_by) > 1:
            sides = ", ".join(f"{said} on rank(s) {_short(r)}" for said, r in said_by.items())
            lines.append(f"{name!r} is {sides}")
    if not lines:
        return "the ranks have the same parameters in different orders"
    more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "; ".join(lines[:_SHOWN]) + more


def _short(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    return shown if len(ranks) <= 8 else f"{shown}, ... ({len(ranks)} ranks)"
