"""Parameters to be overwritten: what a caller may pass, and each tensor's memory as something to broadcast."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ringreduce._ops import check, dtypes, gpus

_AS_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size, for other dtypes


def named_tensors(params: Any) -> list[tuple[str, Any]]:
    """`params` as pairs, those of a state_dict in the order of their names."""
    sort = isinstance(params, (Mapping, ItemsView))
    if sort:
        items = list(params.items() if isinstance(params, Mapping) else params)
    elif isinstance(params, (list, tuple)):
        items = [tuple(p) if isinstance(p, list) else p for p in params]
    else:
        raise ValueError(f"params: expected a state_dict or a list of (name, tensor), got {type(params).__name__}")
    if any(not isinstance(p, tuple) or len(p) != 2 or not isinstance(p[0], str) for p in items):
        raise ValueError("params: expected (name, tensor) pairs, each name a str")
    if sort:
        items.sort(key=itemgetter(0))
    return [(name, tensor) for name, tensor in items if tensor is not None]


def target(argument: str, tensor: Any) -> Tensor:
    """The tensor's memory as something to broadcast in place: each element once, in a dtype of the core's.

    TypeError or ValueError for a tensor without values, or with values that are not simply its elements.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"{argument} is a {type(tensor).__name__}, expected a tensor (broadcast_object sends other objects)"
        )
    if is_lazy(tensor):
        raise ValueError(f"{argument} has no shape yet; run the lazy module once before, on all ranks alike")
    check.dense(argument, tensor)
    if tensor.is_quantized:
        raise ValueError(f"{argument}: expected plain numbers, got dtype {tensor.dtype}; send tensor.int_repr()")
    target = tensor.detach()
    for dimension, (extent, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and extent > 1:  # made by expand: the same element again and again
            target = target.narrow(dimension, 0, 1)
    if target.dtype not in dtypes.CODES:
        target = target.view(_AS_INTEGERS[target.element_size()])
    check.tensor(argument, target)
    gpus.stream_of(argument, target)
    return target


def described(tensor: Tensor) -> str:
    """What must agree between ranks."""
    text = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if may_overlap(tensor.shape, tensor.stride()):
        text += f" with strides {list(tensor.stride())}, which repeat memory"
    return f"{text} on a GPU" if gpus.backend.holds(tensor) else text


def may_overlap(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements may be at one place: not if each dimension steps over all smaller ones."""
    reach = 0
    for stride, extent in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride <= reach:
            return 0 not in shape
        reach += stride * (extent - 1)
    return False


def extent(tensor: Tensor) -> tuple[int, int]:
    """Where the tensor's elements lie: the first byte's address, and that behind the last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
