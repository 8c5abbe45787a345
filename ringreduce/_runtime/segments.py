"""Giving one segment of shared memory to the members of a set on each host.

    leader of a host (its first member)      the host's other members
    ───────────────────────────────────      ────────────────────────
    create, offer it        ──exchange──►    open what has the offer's device, inode and secret
    reserve a part                           reserve a part
            ◄────────────── exchange ──────  done, or why not
    unlink

A memfd is tried first: it leaves nothing behind however the job ends. Where a rank cannot
open another's (/proc out of reach: separate PID namespaces), all ranks take a POSIX
segment instead, which is unlinked as soon as everyone has it. The way that `init` finds
for the world is the way of the whole job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ringreduce import _core
from ringreduce._core import Segment
from ringreduce._runtime import running
from ringreduce.errors import RingreduceError

# Gathers one object from every rank that takes part, in a fixed order, on each of them.
Exchange = Callable[[Any], list[Any]]

_INFORMATION = 2  # RINGREDUCE_LOG


class Shared(NamedTuple):
    """A segment that every member on this host has mapped."""

    segment: Segment | None  # None on a rank that is not a member
    kind: str  # "memfd" or "posix"


def share(
    nbytes: int,
    me: int,
    members: Sequence[int],
    host_of: Sequence[int],
    exchange: Exchange,
    reserve: int | None = None,
) -> Shared:
    """Create and open one segment a host, together with all ranks behind `exchange`.

    Args:
        nbytes: size of this host's segment.
        me: this global rank; it may be outside `members`, then it only takes part.
        members: global ranks that share.
        host_of: global rank -> host.
        exchange: allgather over a group of ranks that holds all members.
        reserve: how many of the first bytes are sure to be touched; all by default. What is
            beyond them must be reserved before its first touch (`Segment.reserve`).

    Raises RingreduceError on every rank if any cannot map its segment, or if there is not
    as much memory as is to be reserved.
    """
    local = [rank for rank in members if host_of[rank] == host_of[me]]
    reserve = nbytes if reserve is None else reserve
    problems: list[str] = []
    for kind in _kinds():
        segment: Segment | None = None
        offer = problem = None
        if local and me == local[0]:
            try:
                segment = Segment.create(kind, nbytes, reserve)
                offer = segment.offer
            except (RingreduceError, OSError) as error:
                problem = f"rank {me} cannot create a {kind} segment of {nbytes} bytes: {error}"
        offers = dict(exchange((me, offer)))
        if me in local and offers[local[0]] is not None:
            try:
                if segment is None:
                    segment = Segment.open(offers[local[0]], nbytes)
                _reserve_part(segment, reserve, local.index(me), len(local))
            except (RingreduceError, OSError) as error:
                problem = f"rank {me} cannot use the {kind} segment of rank {local[0]}: {error}"
        failures = [failure for failure in exchange(problem) if failure is not None]
        if segment is not None and me == local[0]:
            segment.unlink()
        if not failures:
            if problems and me == members[0]:
                _core.log(_INFORMATION, f"ranks share memory by {kind} segments: " + "; ".join(problems))
            return Shared(segment, kind)
        problems += failures
    raise RingreduceError("shared memory cannot be set up: " + "; ".join(problems))


def _kinds() -> Sequence[str]:
    return ("memfd", "posix") if running.current is None else (running.current.sharing,)


def _reserve_part(segment: Segment, nbytes: int, index: int, parts: int) -> None:
    """Each rank reserves a part: at the same time, and in memory near the rank."""
    begin, end = (nbytes * i // parts // 4096 * 4096 for i in (index, index + 1))
    segment.reserve(begin, (nbytes if index == parts - 1 else end) - begin)
