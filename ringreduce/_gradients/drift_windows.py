"""Which part of the parameters is looked at in which step, and where it lies in memory.

    parameters   |     p0     | p1 |       p2       | p3 |
    windows      |   0   |   1   |   2   |   3   |   4   |      equal shares of all bytes

A window cuts parameters into pieces. A piece is a range of elements in the order in which they lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ringreduce._gradients.layout import is_dense

Named = tuple[str, Tensor]


class Piece(NamedTuple):
    """Elements `begin` to `end` of a parameter that had `numel` of them."""

    name: str
    tensor: Tensor
    begin: int
    end: int
    numel: int


def whole(named: Sequence[Named]) -> list[Piece]:
    """A piece for each of the tensors: all of it."""
    return [Piece(name, tensor, 0, tensor.numel(), tensor.numel()) for name, tensor in named]


def cut(named: Sequence[Named], windows: int) -> list[list[Piece]]:
    """All bytes of the tensors in so many windows of equal size."""
    total = sum(tensor.numel() * tensor.element_size() for _, tensor in named)
    result: list[list[Piece]] = [[] for _ in range(windows)]
    window, at = 0, 0  # `at`: of the tensor's first byte
    for name, tensor in named:
        numel, size = tensor.numel(), tensor.element_size()
        begin = 0
        while begin < numel:
            limit = total * (window + 1) // windows  # where this window ends
            end = min(numel, -(-(limit - at) // size))  # an element belongs to the window of its first byte
            if end > begin:
                result[window].append(Piece(name, tensor, begin, end, numel))
                begin = end
            window += begin < numel
        at += numel * size
    return result


def regions(pieces: Sequence[Piece], kept: list[Tensor]) -> list[tuple[int, int]]:
    """Address and bytes of each piece on the CPU. Copies that had to be made are kept alive in `kept`.

    Addresses are asked for anew each time: a program may put another storage under a parameter.
    """
    found = []
    for _, tensor, begin, end, numel in pieces:
        if not tensor.is_contiguous() or not tensor.is_cpu or tensor.numel() != numel:
            tensor = in_memory_order(tensor) if tensor.is_cpu and tensor.numel() == numel else _NOTHING
            kept.append(tensor)
            begin, end = min(begin, tensor.numel()), min(end, tensor.numel())
        size = tensor.element_size()
        found.append((tensor.data_ptr() + begin * size if end > begin else 0, (end - begin) * size))
    return found


def in_memory_order(tensor: Tensor) -> Tensor:
    """All elements in one dimension: the memory itself if they fill it, else a copy."""
    tensor = tensor.detach()
    if is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def watched(named: Sequence[Named]) -> list[Named]:
    """Those whose elements are somewhere: no sparse ones, no lazy ones, none on the meta device."""
    return [(name, tensor) for name, tensor in named if _has_memory(tensor)]


def _has_memory(tensor: Tensor) -> bool:
    if torch.nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided:
        return False
    if tensor.device.type not in ("cpu", "cuda"):
        return False
    try:
        return tensor.data_ptr() != 0
    except RuntimeError:  # a subclass that wraps others, a FakeTensor
        return False


_NOTHING = torch.empty(0)
