"""What `init` made and `shutdown` takes away: one `Context` a process, or none.

            init()                     shutdown()
    None ───────────► Context(engine) ───────────► None
                          │ fork, in the child
                          ▼
                   None, `forked_from` set: every call raises

Everything that belongs to one life of the library hangs on the Context, so that a new
`init` begins with new counters, names and sets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from weakref import ref

from ringreduce.errors import RingreduceError

if TYPE_CHECKING:
    from ringreduce._core import Engine, Gpu


class Registered(Protocol):
    """As much of a process set as a life of the library knows of those that are registered with it."""

    ranks: list[int] | None

    def unbind(self) -> None: ...


@dataclass(eq=False)
class Context:
    """One life of the library, from `init` to `shutdown`."""

    engine: Engine
    rank: int
    size: int
    host_of: list[int]  # world rank -> host, numbered by first appearance
    comm: Any  # our duplicate of the MPI communicator, None without MPI
    sharing: str = "memfd"  # how the job's ranks share memory, see segments.py
    staged_because: str = ""  # why ranks of this host do not read each other's tensors; "" if they do
    pids: list[int] = field(default_factory=list)  # of this host's ranks, by local rank; none: not known
    sets: dict[int, Registered] = field(default_factory=dict)
    # The handles that live and were not synchronized, by (kind, set, name).
    names: dict[tuple[str, int, str], ref[Any]] = field(default_factory=dict)
    gpu: Gpu | None = None  # attached with the first GPU tensor
    differentiable_calls: int = 0  # numbers the backward passes of unnamed collectives

    def __post_init__(self) -> None:
        host = self.host_of[self.rank]
        self.local_rank = self.host_of[: self.rank].count(host)
        self.local_size = self.host_of.count(host)
        # Hosts that have a rank with this local rank: the ring on which this rank's slice goes.
        peers = [h for h in range(max(self.host_of) + 1) if self.host_of.count(h) > self.local_rank]
        self.cross_rank = peers.index(host)
        self.cross_size = len(peers)


current: Context | None = None
forked_from: int | None = None  # in a forked child: the rank of the parent
_inherited: list[Context] = []  # in a forked child: kept, because closing belongs to the parent


def require() -> Context:
    """The running context; RingreduceError where there is none."""
    if current is None:
        raise_not_running()
    return current


def raise_not_running() -> NoReturn:
    """Explain why no collective can run in this process."""
    if forked_from is not None:
        raise RingreduceError(
            f"process {os.getpid()} was forked from rank {forked_from} after ringreduce.init(); "
            "only the parent can call ringreduce (start the process with the 'spawn' method "
            "if it needs collectives of its own)"
        )
    raise RingreduceError("ringreduce is not initialised: call ringreduce.init() first")


def topology() -> Context:
    """The running context for rank(), size() and the like; ValueError where there is none."""
    if current is None:
        if forked_from is not None:
            raise_not_running()
        raise ValueError("ringreduce is not initialised: call ringreduce.init() first")
    return current


def _forget_parent() -> None:
    """After a fork, in the child: the engine's thread and MPI live in the parent only."""
    global current, forked_from
    if current is None:
        return
    for process_set in current.sets.values():
        process_set.unbind()
    forked_from = current.rank
    _inherited.append(current)
    current = None


os.register_at_fork(after_in_child=_forget_parent)
