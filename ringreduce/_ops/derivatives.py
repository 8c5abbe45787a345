"""Derivatives of the collectives: backward, backward again, forward mode, torch.func.

A linear collective's gradient is the reversed collective (`linear.py`), which is differentiable again.
Min, Max and Product are, near a point, a weight on each rank followed by a sum:

    y = op over ranks of x_r      w_r = dy/dx_r      tangent   sum over ranks of w_r * t_r
                                                     gradient  w_r * (sum over ranks of g_r)

    Min, Max   w_r is 1 on the rank that holds the extreme; tied ranks share it equally
    Product    w_r is the product of the other ranks' values; zeros among them are no special case

A derivative is matched between ranks by its call's name, or by the number of the differentiable call,
as the order in which autograd comes to it may differ by rank; to that it adds how often that call's
derivative was asked for. So a gradient of gradients has a name that depends on no order either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ringreduce._ops.linear import Allreduce, Collective, GatherScatter
from ringreduce._runtime import running
from ringreduce.reduction import ReduceOp

_FLIPPED = {ReduceOp.Min: ReduceOp.Max, ReduceOp.Max: ReduceOp.Min}


def linear(collective: Collective, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A linear collective's results, one a tensor, known to autograd."""
    results: tuple[Tensor, ...] = Linear.apply(_Call(collective), *tensors)  # type: ignore[no-untyped-call]
    return results


def weighted(
    collective: Allreduce | GatherScatter, summed: Allreduce | GatherScatter, tensors: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The same for Min, Max and Product; `summed` is the collective with Sum in place of the operation."""
    call = _WeightedCall(collective, summed)
    results: tuple[Tensor, ...] = Weighted.apply(call, *tensors)  # type: ignore[no-untyped-call]
    return results


class _Call:
    """A collective, and the names by which its derivatives are matched."""

    def __init__(self, collective: Any) -> None:
        self.collective = collective
        self._name = ""
        self._asked = 0

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Runs the collective. Counted only then: a call that a rank refuses is none."""
        results: tuple[Tensor, ...] = self.collective.run([_with_memory(tensor) for tensor in tensors])
        context = running.require()
        if self.collective.name is None:
            context.differentiable_calls += 1
            self._name = f"grad#{context.differentiable_calls}"
        else:
            self._name = f"grad.{self.collective.name}"
        return results

    def next_name(self) -> str:
        """For the next derivative that is asked of this call."""
        self._asked += 1
        return self._name if self._asked == 1 else f"{self._name}~{self._asked}"


class _WeightedCall(_Call):
    def __init__(self, collective: Allreduce | GatherScatter, summed: Allreduce | GatherScatter) -> None:
        super().__init__(collective)
        self.summed = summed

    def weights(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        """dy/dx of this rank, one a tensor; for Product differentiable again."""
        if self.collective.op == ReduceOp.Product:
            return self._other_factors(name, tensors)
        with torch.no_grad():
            return self._shares(name, [tensor.detach() for tensor in tensors])

    def _other_factors(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        process_set = self.collective.process_set
        scale = self.collective.prescale ** process_set.size() * self.collective.postscale
        rank = process_set.rank()
        weights = []
        for index, tensor in enumerate(tensors):
            gather = GatherScatter(f"{name}.factors.{index}", process_set, True, ReduceOp.Sum)
            (everyone,) = linear(gather, [tensor.unsqueeze(0)])
            weights.append(torch.cat([everyone[:rank], everyone[rank + 1 :]]).prod(0) * scale)
        return weights

    def _shares(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        call = self.collective
        # A negative factor turns the order round. Unscaled numbers are compared: they are not rounded.
        op = ReduceOp(call.op) if call.prescale >= 0 else _FLIPPED[ReduceOp(call.op)]
        unscaled = Allreduce(f"{name}.extreme", call.process_set, op)
        extremes = weighted(unscaled, Allreduce(None, call.process_set, ReduceOp.Sum), tensors)
        holds = [(tensor == extreme).to(tensor.dtype) for tensor, extreme in zip(tensors, extremes, strict=True)]
        counts = linear(Allreduce(f"{name}.holders", call.process_set, ReduceOp.Sum), holds)
        scale = call.prescale * call.postscale
        return [held / count * scale for held, count in zip(holds, counts, strict=True)]


class _Function(torch.autograd.Function):
    """What the two kinds have in common. The first argument is the call."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        return call.run(tensors)

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, call: _Call, *tensors: Tensor) -> tuple[Any, Any]:
        """The batch as the last dimension: no collective looks at that one."""
        if not isinstance(call.collective, Allreduce) and any(
            tensor.dim() == (at is not None) for tensor, at in zip(tensors, in_dims[1:], strict=True)
        ):
            raise ValueError("tensor: got a scalar (under vmap), expected one dimension at least")
        batched = [
            tensor.unsqueeze(-1).expand(*tensor.shape, info.batch_size) if at is None else tensor.movedim(at, -1)
            for tensor, at in zip(tensors, in_dims[1:], strict=True)
        ]
        results = cls.apply(call, *batched)  # type: ignore[no-untyped-call]
        return results, tuple(result.dim() - 1 for result in results)


class Linear(_Function):
    """Average, Sum, and all that only moves numbers."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        call: _Call = ctx.call
        return (None, *linear(call.collective.reversed(call.next_name()), grads))

    @staticmethod
    def jvp(ctx: Any, _call: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        call: _Call = ctx.call
        return linear(replace(call.collective, name=call.next_name()), tangents)


class Weighted(_Function):
    """Min, Max and Product."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        call: _WeightedCall = ctx.call
        name = call.next_name()
        weights = call.weights(name, ctx.saved_tensors)
        sums = linear(call.summed.reversed(f"{name}.sum"), grads)
        return (None, *(weight.conj() * total for weight, total in zip(weights, sums, strict=True)))

    @staticmethod
    def jvp(ctx: Any, _call: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        call: _WeightedCall = ctx.call
        name = call.next_name()
        weights = call.weights(name, ctx.saved_tensors)
        moved = [weight * tangent for weight, tangent in zip(weights, tangents, strict=True)]
        return linear(replace(call.summed, name=f"{name}.sum"), moved)


def _with_memory(tensor: Tensor) -> Tensor:
    """Zeros that autograd only pretends to have, as real ones."""
    return torch.zeros_like(tensor, device=tensor.device) if tensor._is_zerotensor() else tensor
