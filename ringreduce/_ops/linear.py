"""The linear collectives, each with the one that takes gradients back through it.

    collective                  reversed
    allreduce Average, Sum      itself, with the same scale factors
    allgather                   reducescatter (Average): each rank's own rows
    reducescatter               allgather; times size for Sum
    broadcast                   reduce (Average) to the root; zeros elsewhere
    reduce Average, Sum         broadcast of the root's, with the same scale factors
    alltoall                    alltoall with the received splits
    gather                      scatter of the root's rows
    scatter                     gather to the root; zeros elsewhere

Reversing twice gives the collective itself: that is the gradient of a gradient.

An object is one call: what is known only afterwards, such as the rows that each rank gave, it learns
when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """broadcast from a global rank, or back: reduced on the root, zeros elsewhere.

    `factor` multiplies what is broadcast, the scales what is reduced.
    """

    root_rank: int
    outward: bool = True
    op: Any = ReduceOp.Average
    prescale: float = 1.0
    postscale: float = 1.0
    factor: float = 1.0

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        if self.outward:
            output = submit.broadcast(tensor, self.root_rank, False, self.name, self.process_set, wake=False).wait()
            return (output if self.factor == 1 else output * self.factor,)
        return (
            submit.reduce(
                tensor, self.root_rank, False, self.name, self.op, self.prescale, self.postscale, self.process_set,
                wake=False,
            ).wait(),
        )  # fmt: skip

    def reversed(self, name: str) -> FromRoot:
        return replace(self, name=name, outward=not self.outward)


@dataclass
class RootRows(Collective):
    """gather to a global rank (`gathers`) or scatter from it, along dimension 0.

    `rows`: from or for each rank. `unread`: how many rows, elsewhere than on the root, a scatter was given; going back
    they are zeros.
    """

    root_rank: int
    gathers: bool
    rows: Any = None
    unread: int = 0

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        (tensor,) = tensors
        at_root = running.require().rank == self.root_rank
        if not self.gathers:
            self.unread = 0 if at_root else tensor.shape[0]
            output, _ = submit.scatter(
                tensor, self.root_rank, self.rows, self.name, self.process_set, wake=False
            ).wait()
            return (output,)
        output, rows = submit.gather(tensor, self.root_rank, self.name, self.process_set, wake=False).wait()
        if at_root:
            self.rows = rows
            return (output,)
        return (tensor.new_zeros((self.unread, *tensor.shape[1:])),)

    def reversed(self, name: str) -> RootRows:
        return replace(self, name=name, gathers=not self.gathers)


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
