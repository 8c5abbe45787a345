"""Digests of parameters on the CPU, and how they travel (csrc/kernels/digest.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ringreduce import _core
from ringreduce._gradients.drift_windows import Piece, regions
from ringreduce._ops import dtypes


class Taken(NamedTuple):
    """The digest of a window, as it was after a step."""

    step: int  # 0: before the first
    window: tuple[int, int]  # the number of the round in which it was taken, and of the window
    digest: Any  # an int, or a tensor on a GPU
    each: Any  # a digest of each piece: a list, or a tensor
    pieces: Sequence[Piece]


WHOLE = -1  # in place of a window: all parameters
NOTHING = Taken(0, (-1, WHOLE), 0, (), ())  # says nothing of any parameter


class CpuDigests:
    """Digests of memory, taken by one core."""

    on_gpu = False
    every = 1  # how many reductions there are for one that is compared

    def take(self, step: int, window: tuple[int, int], pieces: Sequence[Piece]) -> Taken:
        """The digest of the pieces as they are now."""
        copies: list[Tensor] = []
        digest, each = _core.digest(regions(pieces, copies))
        return Taken(step, window, digest, each, pieces)

    def write(self, tail: Tensor, taken: Taken, _round: int) -> None:
        """Write pairs of bits."""
        _core.write_pairs(dtypes.CODES[tail.dtype], taken.digest, tail.data_ptr())

    def read(self, tail: Tensor, taken: Taken, _round: int) -> tuple[Taken, bool]:
        """After the reduction: what was compared, and whether the ranks differ."""
        return taken, _core.pairs_differ(dtypes.CODES[tail.dtype], tail.data_ptr())

    def number(self, taken: Taken) -> int:
        """The digest."""
        return int(taken.digest)

    def each(self, taken: Taken) -> list[int]:
        """The digests of the pieces."""
        return list(taken.each)
