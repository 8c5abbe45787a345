"""Checks of what a caller passes. Each error names the argument, what was given, what is allowed."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringreduce._ops import dtypes
from ringreduce._runtime.arguments import index as index
from ringreduce.reduction import MEANINGLESS, ReduceOp


def tensor(argument: str, value: Any) -> int:
    """Check that `value` is a dense tensor which the core can move; returns its dtype code."""
    dense(argument, value)
    code = dtypes.CODES.get(value.dtype)
    if code is None:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes.BY_CODE)
        raise ValueError(f"{argument}: dtype {value.dtype} is not supported; allowed: {allowed}")
    memory(argument, value)
    return code


def dense(argument: str, value: Any) -> None:
    """Check that `value` is a dense tensor on a kind of device that is served."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{argument}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else f"layout {value.layout}"
        raise ValueError(f"{argument}: expected a dense tensor, got {layout}")
    device(argument, value)


def memory(argument: str, value: Tensor) -> None:
    """Check that the tensor's elements are somewhere: those of FakeTensor, of many subclasses, of zeros that
    torch only pretends to have, and of storage that was freed are not.
    """
    try:
        if value.data_ptr() or not value.numel():
            return
    except RuntimeError:  # torch's own words for some of them
        pass
    kind = "a torch.Tensor" if type(value) is Tensor else f"a {type(value).__name__}"
    raise ValueError(
        f"{argument}: got {kind} without memory of its own; pass one with values, such as "
        "tensor.clone(), or the plain tensor that a subclass wraps"
    )


def device(argument: str, value: Tensor) -> None:
    """Check that the tensor is on a kind of device that is served."""
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{argument}: a tensor on device '{value.device}' is not supported; allowed: cpu, cuda")


def writable(argument: str, value: Tensor) -> None:
    """Check that an in-place collective may write to `value` behind autograd's back."""
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{argument}: got a tensor that requires grad, which an in-place collective cannot "
            "differentiate; pass tensor.data or .detach(), call it under torch.no_grad(), or use "
            "the out-of-place form"
        )
    if has_tangent(value):
        raise ValueError(
            f"{argument}: got a tensor with a tangent (forward-mode differentiation), which an in-place "
            "collective would leave as it is; use the out-of-place form"
        )


def has_tangent(value: Any) -> bool:
    """Whether the tensor carries a tangent of forward-mode differentiation."""
    if forward_ad._current_level < 0 or not isinstance(value, Tensor):
        return False
    return forward_ad.unpack_dual(value).tangent is not None  # type: ignore[no-untyped-call]


def with_rows(argument: str, value: Any) -> int:
    """As `tensor`, and at least one dimension."""
    code = tensor(argument, value)
    if value.dim() == 0:
        raise ValueError(f"{argument}: got a scalar, expected one dimension at least (try tensor.view(1))")
    return code


def reduction(op: Any, dtype: torch.dtype) -> int:
    """The core's number for `op` (None is Average), checked against the element type."""
    if op is None:
        op = ReduceOp.Average
    try:
        op = ReduceOp(op)
    except ValueError:
        raise ValueError(f"op: {op!r} is unknown; allowed: {_names(ReduceOp)}") from None
    name = str(dtype).removeprefix("torch.")
    if name in MEANINGLESS[op]:
        why = " (complex numbers have no order)" if dtype.is_complex else ""
        allowed = _names(other for other in ReduceOp if name not in MEANINGLESS[other])
        raise ValueError(f"op: {op.name} of {dtype} has no meaning{why}; allowed: {allowed}")
    return int(op)


def _names(ops: Iterable[ReduceOp]) -> str:
    return ", ".join(op.name for op in ops)


def scale(argument: str, factor: Any) -> float:
    """A prescale or postscale factor as a float."""
    if isinstance(factor, (float, int, numbers.Real)):  # numpy's scalars are real numbers; to ask that first is slow
        return float(factor)
    raise TypeError(f"{argument}: expected a number, got {type(factor).__name__}")


def op_name(name: Any) -> None:
    """Check an operation's name."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: expected a str or None, got {type(name).__name__}")
    if name is not None and not (name.isascii() or _is_unicode(name)):
        raise ValueError(f"name: {name!r} has characters that are not Unicode text (lone surrogates)")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def splits(value: Any, rows: int, size: int) -> list[int]:
    """The rows for each rank of an alltoall: `value`, or equal parts where it is None."""
    if value is None:
        if rows % size:
            raise ValueError(
                f"splits: dimension 0 ({rows}) does not divide into {size} equal parts; give splits, one a rank"
            )
        return [rows // size] * size
    if isinstance(value, Tensor):
        if value.dtype not in (torch.int32, torch.int64) or value.dim() != 1:
            raise ValueError(f"splits: expected a 1-D int32 tensor, got {value.dim()}-D {value.dtype}")
        value = value.tolist()
    if not isinstance(value, Iterable):
        raise TypeError(f"splits: expected one number a rank, got {value!r}")
    parts = [index("splits", part) for part in value]
    if len(parts) != size or min(parts) < 0 or sum(parts) != rows:
        raise ValueError(f"splits: expected {size} non-negative numbers with the sum {rows} (dimension 0), got {parts}")
    return parts
