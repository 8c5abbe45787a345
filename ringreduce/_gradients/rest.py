"""Gradients that no bucket took along, reduced by operations that the ranks agree on one by one.

They are those of parameters of which no gradient was delivered in this step: assigned by the program (from
autograd.grad(), or made by hand), seen for the first time, or come too late for their bucket. All ranks know
which parameters these are; which of them have something, and of what kind, they tell each other first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ringreduce._gradients import delivery
from ringreduce._gradients.options import Options
from ringreduce._gradients.slot import Kind, Slot
from ringreduce._gradients.sparse import SparseReduction
from ringreduce._ops import gpus, submit
from ringreduce.compression import effective
from ringreduce.reduction import ReduceOp


def reduce_rest(slots: Sequence[Slot], options: Options, name: str) -> None:
    """Reduce what is local in the p.grad of `slots`, the same parameters on all ranks, and deliver it.

    Args:
        name: of the optimizer, for the operations.
    """
    kinds = _agree_on_kinds(slots, options, name)
    dense = [slot for slot, kind in zip(slots, kinds, strict=True) if kind is Kind.DENSE]
    sparse = [slot for slot, kind in zip(slots, kinds, strict=True) if kind is Kind.SPARSE]
    _reduce_dense(dense, options, name)
    reduce_sparse(sparse, options, name)


def _agree_on_kinds(slots: Sequence[Slot], options: Options, name: str) -> list[Kind]:
    """The largest kind of each slot's local gradient over all ranks."""
    mine = []
    for slot in slots:
        kind = Kind.UNSEEN
        grad = slot.parameter.grad
        if grad is not None and slot.is_local():
            kind = Kind.SPARSE if grad.is_sparse and not options.sparse_as_dense else Kind.DENSE
        mine.append(int(kind))
    row = torch.tensor([mine], dtype=torch.uint8, device="cpu")
    output, _ = submit.allgather(row, f"{name}.rest.kinds", options.process_set).wait()
    return [Kind(kind) for kind in output.amax(0).tolist()]


def _reduce_dense(slots: Sequence[Slot], options: Options, name: str) -> None:
    if not slots:
        return
    compression = effective(options.compression, options.process_set)
    sent = [compression.compress(_local_or_zeros(slot)) for slot in slots]
    factor = options.gradient_predivide_factor
    handle = submit.allreduce(
        [tensor for tensor, _ in sent], False, f"{name}.rest", options.op, 1.0 / factor, factor, options.process_set
    )
    for slot, reduced, (_, context) in zip(slots, handle.wait(), sent, strict=True):
        result = compression.decompress(reduced, context)
        if result.stride() != slot.parameter.stride():
            result = torch.empty_like(slot.parameter, requires_grad=False).copy_(result)
        delivery.deliver(slot, result)


def _local_or_zeros(slot: Slot) -> Tensor:
    grad = slot.gradient()
    if grad is not None and slot.is_local():
        return grad.to_dense() if grad.is_sparse else grad
    slot.aside = slot.parameter.grad
    if gpus.backend.holds(slot.parameter):
        return gpus.backend.empty_like(slot.parameter.detach()).zero_()
    return torch.zeros_like(slot.parameter, requires_grad=False)


def reduce_sparse(slots: Sequence[Slot], options: Options, name: str) -> None:
    """Gather the sparse gradients of `slots`, merge and deliver them."""
    reductions, made_dense = [], []
    for slot in slots:
        grad = slot.parameter.grad
        made_dense.append(grad is not None and slot.is_local() and not grad.is_sparse)
        local = slot.parameter.grad if slot.is_local() else None
        if local is None and slot.parameter.grad is not None:
            slot.aside = slot.parameter.grad
        reductions.append(SparseReduction(f"{name}.{slot.name}", slot.parameter, local, options.process_set))
    factor = 1.0 / options.process_set.size() if options.op is ReduceOp.Average else 1.0
    for slot, reduction, dense in zip(slots, reductions, made_dense, strict=True):
        result = reduction.result(factor)
        delivery.deliver(slot, result.to_dense() if dense and result is not None else result)


def reduce_loss(loss: Any, options: Options, name: str) -> Any:
    """What a closure has returned: a tensor or a number is reduced like the gradients, anything else is left alone."""
    if isinstance(loss, bool) or not isinstance(loss, (float, int, Tensor)):
        return loss
    tensor = loss.detach() if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64, device="cpu")
    handle = submit.allreduce([tensor], False, f"{name}.loss", options.op, 1.0, 1.0, options.process_set)
    (result,) = handle.wait()
    return result if isinstance(loss, Tensor) else result.item()
