"""The linear collectives, each with the one that takes gradients back through it.

    collective                  reversed
    allreduce Average, Sum      itself, with the same scale factors
    allgather                   reducescatter (Average): each rank's own rows
    reducescatter               allgather; times size for Sum
    broadcast                   reduce (Average) to the root; zeros elsewhere
    alltoall                    alltoall with the received splits

Reversing twice gives the collective itself: that is the gradient of a gradient.

An object is one call: what is known only afterwards, such as the rows that each rank gave, it learns
when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ringreduce._ops import submit
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.reduction import ReduceOp


@dataclass
class Collective:
    """One call of a collective. `name` is None where its number matches it between ranks."""

    name: str | None
    process_set: ProcessSet

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results, one a tensor. No autograd."""
        raise NotImplementedError

    def reversed(self, name: str) -> Collective:
        """The collective that gradients of the results go through."""
        raise NotImplementedError


@dataclass
class Allreduce(Collective):
    """Of one tensor or a group, with any operation; linear for Average and Sum."""

    op: Any = None
    prescale: float = 1.0
    postscale: float = 1.0

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        argument = _only_tensor if len(tensors) == 1 else _member
        handle = submit.allreduce(
            tensors, False, self.name, self.op, self.prescale, self.postscale, self.process_set, argument, wake=False
        )
        return tuple(handle.wait())

    def reversed(self, name: str) -> Allreduce:
        return Allreduce(name, self.process_set, self.op, self.prescale, self.postscale)


@dataclass
class GatherScatter(Collective):
    """allgather (`gathers`) or reducescatter, along dimension 0, each the other's reverse.

    `factor` multiplies what is gathered, the scales what is reduced. `rows`: from or for each rank.
    """

    gathers: bool
    op: Any = ReduceOp.Average
    prescale: float = 1.0
    postscale: float = 1.0
    factor: float = 1.0
    rows: list[int] | None = None

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if self.gathers:
            output, self.rows = submit.allgather(tensor, self.name, self.process_set, wake=False).wait()
            return (output if self.factor == 1 else output * self.factor,)
        return (
            submit.reducescatter(
                tensor, self.name, self.op, self.prescale, self.postscale, self.process_set, self.rows, wake=False
            ).wait(),
        )

    def reversed(self, name: str) -> GatherScatter:
        return GatherScatter(
            name, self.process_set, not self.gathers, self.op, self.prescale, self.postscale, self.factor, self.rows
        )


@dataclass
class FromRoot(Collective):
    """broadcast from a global rank, or back: the average on the root, zeros elsewhere."""

    root_rank: int
    outward: bool = True

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if self.outward:
            return (submit.broadcast(tensor, self.root_rank, False, self.name, self.process_set, wake=False).wait(),)
        (reduced,) = Allreduce(self.name, self.process_set).run(tensors)
        return (reduced if running.require().rank == self.root_rank else reduced.zero_(),)

    def reversed(self, name: str) -> FromRoot:
        return FromRoot(name, self.process_set, self.root_rank, not self.outward)


@dataclass
class Alltoall(Collective):
    """Along dimension 0; `rows`, once it ran: how many came from each rank."""

    splits: Any
    rows: list[int] | None = None

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        output, self.rows = submit.alltoall(tensor, self.splits, self.name, self.process_set, wake=False).wait()
        return (output,)

    def reversed(self, name: str) -> Alltoall:
        return Alltoall(name, self.process_set, self.rows)


def _only_tensor(_index: int) -> str:
    return "tensor"


def _member(index: int) -> str:
    return f"tensors[{index}]"
