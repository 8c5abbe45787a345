"""The collectives as differentiable functions.

    collective                  gradient
    allreduce Average, Sum      allreduce with the same operation and scales
    allgather                   reducescatter (Average): each rank's own rows
    broadcast                   allreduce (Average) on the root, zeros elsewhere
    reducescatter               allgather; times size for Sum
    alltoall                    alltoall with the received splits

A gradient is matched between ranks by its call's name, or by the number of the
differentiable call, as the order in which autograd comes to it may differ by rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringreduce import _context, _submit
from ringreduce.process_set import ProcessSet
from ringreduce.reduction import ReduceOp


def wanted(*tensors: Any) -> bool:
    """Whether autograd will want to go back through a collective of these tensors."""
    return torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply`, which torch leaves untyped."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _grad_name(name: str | None) -> str:
    context = _context.require()
    if name is not None:
        return f"grad.{name}"
    context.differentiable_calls += 1
    return f"grad#{context.differentiable_calls}"


class Allreduce(torch.autograd.Function):
    """Of one tensor or a group; one output a tensor."""

    @staticmethod
    def forward(
        ctx: Any, name: str | None, op: Any, prescale: float, postscale: float,
        process_set: ProcessSet, *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.call = (_grad_name(name), op, prescale, postscale, process_set)
        handle = _submit.allreduce(tensors, False, name, op, prescale, postscale, process_set)
        return tuple(handle.wait())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        name, op, prescale, postscale, process_set = ctx.call
        if op not in (None, ReduceOp.Average, ReduceOp.Sum):
            raise NotImplementedError(
                f"allreduce with op={ReduceOp(op).name} has no gradient; call it on "
                "tensor.detach() where none is needed"
            )
        handle = _submit.allreduce(grads, False, name, op, prescale, postscale, process_set)
        return (None, None, None, None, None, *handle.wait())


class Allgather(torch.autograd.Function):
    """Along dimension 0."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, process_set: ProcessSet) -> Tensor:
        output, rows = _submit.allgather(tensor, name, process_set, wake=False).wait()
        ctx.call = (_grad_name(name), rows, process_set)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        name, rows, process_set = ctx.call
        own = _submit.reducescatter(grad, name, ReduceOp.Average, 1.0, 1.0, process_set, rows)
        return own.wait(), None, None


class Broadcast(torch.autograd.Function):
    """From a global rank."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root_rank: int, name: str | None, process_set: ProcessSet) -> Tensor:
        ctx.call = (_grad_name(name), root_rank, process_set)
        return _submit.broadcast(tensor, root_rank, False, name, process_set, wake=False).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        name, root_rank, process_set = ctx.call
        handle = _submit.allreduce([grad], False, name, ReduceOp.Average, 1.0, 1.0, process_set)
        (reduced,) = handle.wait()
        if _context.require().rank != root_rank:
            reduced.zero_()
        return reduced, None, None, None


class Reducescatter(torch.autograd.Function):
    """Along dimension 0."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, name: str | None, op: Any, prescale: float, postscale: float,
        process_set: ProcessSet,
    ) -> Tensor:  # fmt: skip
        ctx.call = (_grad_name(name), op, prescale * postscale, process_set)
        return _submit.reducescatter(tensor, name, op, prescale, postscale, process_set, wake=False).wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        name, op, factor, process_set = ctx.call
        if op not in (None, ReduceOp.Average, ReduceOp.Sum):
            raise NotImplementedError(
                f"reducescatter with op={ReduceOp(op).name} has no gradient; call it on "
                "tensor.detach() where none is needed"
            )
        output, _ = _submit.allgather(grad, name, process_set, wake=False).wait()
        if op == ReduceOp.Sum:
            factor *= process_set.size()
        return (output if factor == 1 else output * factor), None, None, None, None, None


class Alltoall(torch.autograd.Function):
    """Along dimension 0; outputs the rows and, as int32, how many came from each rank."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, splits: Any, name: str | None, process_set: ProcessSet
    ) -> tuple[Tensor, Tensor]:
        output, rows = _submit.alltoall(tensor, splits, name, process_set, wake=False).wait()
        ctx.call = (_grad_name(name), rows, process_set)
        received = torch.tensor(rows, dtype=torch.int32)
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        name, rows, process_set = ctx.call
        output, _rows = _submit.alltoall(grad, rows, name, process_set, wake=False).wait()
        return output, None, None, None
