"""Whether the ranks of a host can read each other's memory, so that large tensors need not be staged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringreduce._core import log, read_memory
from ringreduce._lifecycle import roster

_SETTING = "RINGREDUCE_SINGLE_COPY"


def why_not(everyone: list[roster.Rank], rank: int, local: list[int], exchange: Callable[[Any], list[Any]]) -> str:
    """Why this host's ranks do not; "" if they do. Collective: every rank tries all others of its host.

    Hosts may differ: a process set that spans several stages anyway.
    """
    if everyone[rank].word is None:  # as on all ranks
        return f"{_SETTING} is off"
    if len(everyone) == 1:
        return "there is one rank"
    refusals = exchange(_try(everyone, rank, local))
    refused = [f"rank {one}: {refusals[one]}" for one in local if refusals[one]]
    why = "there is one rank on this host" if len(local) == 1 else "; ".join(refused[:1])
    if refused:
        log(2, f"large tensors are staged, as memory of other ranks cannot be read ({why})")
    return why


def _try(everyone: list[roster.Rank], rank: int, local: list[int]) -> str:
    if len({everyone[one].pid_namespace for one in local}) > 1:
        return "the ranks of this host are in different PID namespaces"
    for one in local:
        word = everyone[one].word
        if one != rank and word is not None and (problem := read_memory(everyone[one].pid, word)):
            return f"the memory of rank {one} cannot be read: {problem}"
    return ""
