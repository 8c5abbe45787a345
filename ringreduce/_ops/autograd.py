"""The collectives as differentiable functions: when that is wanted, and how each is called.

The derivatives themselves are in `derivatives.py` and `linear.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringreduce._ops import check
from ringreduce._ops.derivatives import linear, weighted
from ringreduce._ops.linear import Allreduce, Alltoall, FromRoot, GatherScatter, RootRows
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.reduction import ReduceOp

_under_torch_func = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_LINEAR = (None, ReduceOp.Average, ReduceOp.Sum)


def wanted(*tensors: Any) -> bool:
    """Whether a derivative through a collective of these tensors may be asked for, in any mode."""
    if _under_torch_func():
        return True
    if torch.is_grad_enabled() and any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors):
        return True
    return forward_ad._current_level >= 0 and any(check.has_tangent(tensor) for tensor in tensors)


def allreduce(
    tensors: Sequence[Tensor], name: str | None, op: Any, prescale: float, postscale: float, process_set: ProcessSet
) -> tuple[Tensor, ...]:
    """Of one tensor or a group."""
    scales = check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale)
    call = Allreduce(name, process_set, op, *scales)
    if op in _LINEAR:
        return linear(call, tensors)
    return weighted(call, Allreduce(None, process_set, ReduceOp.Sum), tensors)


def reducescatter(
    tensor: Tensor, name: str | None, op: Any, prescale: float, postscale: float, process_set: ProcessSet
) -> Tensor:
    """Along dimension 0."""
    scales = check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale)
    call = GatherScatter(name, process_set, False, op, *scales)
    if op in _LINEAR:
        call.factor = scales[0] * scales[1] * (process_set.size() if op == ReduceOp.Sum else 1)
        (output,) = linear(call, [tensor])
    else:
        (output,) = weighted(call, GatherScatter(None, process_set, False, ReduceOp.Sum), [tensor])
    return output


def allgather(tensor: Tensor, name: str | None, process_set: ProcessSet) -> Tensor:
    """Along dimension 0."""
    (output,) = linear(GatherScatter(name, process_set, True), [tensor])
    return output


def broadcast(tensor: Tensor, root_rank: int, name: str | None, process_set: ProcessSet) -> Tensor:
    """From a global rank."""
    (output,) = linear(FromRoot(name, process_set, root_rank), [tensor])
    return output


def reduce(
    tensor: Tensor,
    root_rank: int,
    name: str | None,
    op: Any,
    prescale: float,
    postscale: float,
    process_set: ProcessSet,
) -> Tensor:
    """To a global rank."""
    if op not in _LINEAR:
        raise ValueError("op: only Average and Sum can be differentiated here; use allreduce, or tensor.detach()")
    scales = check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale)
    factor = scales[0] * scales[1] / (1 if op == ReduceOp.Sum else process_set.size())
    (output,) = linear(FromRoot(name, process_set, root_rank, False, op, *scales, factor), [tensor])
    return output


def gather(tensor: Tensor, root_rank: int, name: str | None, process_set: ProcessSet) -> Tensor:
    """Along dimension 0, to a global rank."""
    (output,) = linear(RootRows(name, process_set, root_rank, True), [tensor])
    return output


def scatter(tensor: Tensor, root_rank: int, splits: Any, name: str | None, process_set: ProcessSet) -> Tensor:
    """Along dimension 0, from a global rank."""
    (output,) = linear(RootRows(name, process_set, root_rank, False, splits), [tensor])
    return output


def alltoall(tensor: Tensor, splits: Any, name: str | None, process_set: ProcessSet) -> tuple[Tensor, list[int]]:
    """Along dimension 0: the rows, and how many came from each rank."""
    call = Alltoall(name, process_set, splits)
    (output,) = linear(call, [tensor])
    assert call.rows is not None
    return output, call.rows
