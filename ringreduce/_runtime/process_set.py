"""Process sets: which ranks take part in a collective.

A set's object carries the engine it is registered with (`engine`), so that a collective
needs one attribute to know that it may run: before `init`, after `shutdown`, in a forked
child, on an unregistered set and on a rank outside the set it is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ringreduce._runtime import running
from ringreduce._runtime.arguments import index

if TYPE_CHECKING:
    from ringreduce._core import Engine


class ProcessSet:
    """Ranks that run collectives among themselves.

    Args:
        ranks_or_comm: the global ranks, in any order, or an mpi4py communicator.

    Attributes:
        process_set_id: number of the set once registered, else None.
        ranks: the global ranks, ascending; None for a communicator not yet registered.
        mpi_comm: the communicator that was given, or None.

    Register it with `add_process_set` or `init(process_sets=[...])`.
    """

    def __init__(self, ranks_or_comm: Iterable[int] | Any) -> None:
        self.process_set_id: int | None = None
        self.ranks: list[int] | None = None
        self.mpi_comm: Any = None
        self.engine: Engine | None = None
        self._place: tuple[int, int] | None = (
            None  # this rank's number in the set, and the set's size; None as for engine
        )
        if hasattr(ranks_or_comm, "Get_group"):
            self.mpi_comm = ranks_or_comm
        else:
            self.ranks = _checked_ranks(ranks_or_comm)

    def size(self) -> int:
        """Number of ranks in the set. ValueError before it is registered."""
        return len(self.registered_ranks())

    def rank(self) -> int:
        """This process's rank within the set. ValueError if it is not a member."""
        ranks = self.registered_ranks()
        me = running.topology().rank
        if me not in ranks:
            raise ValueError(f"process_set: rank {me} is not a member of {self}")
        return ranks.index(me)

    def included(self) -> bool:
        """Whether this process is a member. ValueError before the set is registered."""
        return running.topology().rank in self.registered_ranks()

    def registered_ranks(self) -> list[int]:
        """The ranks; ValueError unless the set is registered with the running library."""
        context = running.topology()
        if self.process_set_id is None or context.sets.get(self.process_set_id) is not self:
            raise ValueError(f"process_set: {self} is not registered; call add_process_set() first")
        assert self.ranks is not None
        return self.ranks

    def usable_engine(self) -> Engine:
        """The engine to submit to; the error that explains why there is none."""
        if self.engine is None:
            running.require()
            self.rank()  # raises: not registered, or not a member
            raise AssertionError("a registered set has an engine on its members")
        return self.engine

    def set_rank(self, argument: str, rank: int) -> int:
        """Convert a global rank to this set's; ValueError naming `argument` if it has none."""
        rank = index(argument, rank)
        ranks = self.registered_ranks()
        if rank not in ranks:
            raise ValueError(f"{argument}: {rank} is not a global rank of the process set; its ranks are {ranks}")
        return ranks.index(rank)

    def bind(self, process_set_id: int, ranks: list[int], engine: Engine | None, me: int) -> None:
        """Attach to the running library; `engine` is None on a rank outside the set. `me`: this global rank."""
        self.process_set_id = process_set_id
        self.ranks = ranks
        self.engine = engine
        self._place = None if engine is None else (ranks.index(me), len(ranks))

    def unbind(self) -> None:
        """Detach from a library that is shut down, or from a set that was removed."""
        self.engine = self._place = None
        if self.process_set_id != 0:  # the global set keeps its number
            self.process_set_id = None

    def __repr__(self) -> str:
        return f"ProcessSet(id={self.process_set_id}, ranks={self.ranks})"


def _checked_ranks(ranks: Any) -> list[int]:
    try:
        given = sorted(ranks)
    except TypeError as error:
        raise ValueError(f"ranks_or_comm: expected ranks or an mpi4py communicator, got {ranks!r}") from error
    try:
        result = [index("ranks_or_comm", rank) for rank in given]
    except TypeError:
        raise ValueError(f"ranks_or_comm: ranks are ints, got {given!r}") from None
    if len(set(result)) != len(result):
        raise ValueError(f"ranks_or_comm: each rank may appear once, got {result!r}")
    return result


global_process_set = ProcessSet([])
global_process_set.process_set_id = 0
