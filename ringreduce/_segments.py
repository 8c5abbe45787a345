"""Giving one segment of shared memory to the members of a set on each host.

    leader of a host (its first member)      the host's other members
    ───────────────────────────────────      ────────────────────────
    create, offer the path  ──exchange──►    open the path
            ◄────────────── exchange ──────  opened, or why not
    unlink

A memfd is tried first: it leaves nothing behind however the job ends. Where a rank cannot
open another's (/proc out of reach: separate PID namespaces), all ranks take a POSIX
segment instead, which is unlinked as soon as everyone has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ringreduce._core import Segment
from ringreduce.errors import RingreduceError

# Gathers one object from every rank that takes part, in a fixed order, on each of them.
Exchange = Callable[[Any], list[Any]]


class Shared(NamedTuple):
    """A segment that every member on this host has mapped."""

    segment: Segment | None  # None on a rank that is not a member
    kind: str  # "memfd" or "posix"


def share(nbytes: int, me: int, members: Sequence[int], host_of: Sequence[int], exchange: Exchange) -> Shared:
    """Create and open one segment a host, together with all ranks behind `exchange`.

    Args:
        nbytes: size of this host's segment.
        me: this global rank; it may be outside `members`, then it only takes part.
        members: global ranks that share.
        host_of: global rank -> host.
        exchange: allgather over a group of ranks that holds all members.

    Raises RingreduceError on every rank if any cannot map its segment.
    """
    leader = next((rank for rank in members if host_of[rank] == host_of[me]), None)
    problems: list[str] = []
    for kind in ("memfd", "posix"):
        segment: Segment | None = None
        path = problem = None
        if me == leader:
            try:
                segment = Segment.create(kind, nbytes)
                path = segment.path
            except (RingreduceError, OSError) as error:
                problem = f"rank {me} cannot create a {kind} segment of {nbytes} bytes: {error}"
        offers: dict[int, str | None] = dict(exchange((me, path)))
        if me in members and me != leader and leader is not None:
            path = offers[leader]
            if path is not None:
                try:
                    segment = Segment.open(path, nbytes)
                except (RingreduceError, OSError) as error:
                    problem = f"rank {me} cannot open {path}: {error}"
        failures = [failure for failure in exchange(problem) if failure is not None]
        if segment is not None and me == leader:
            segment.unlink()
        if not failures:
            return Shared(segment, kind)
        problems += failures
    raise RingreduceError("shared memory cannot be set up: " + "; ".join(problems))
