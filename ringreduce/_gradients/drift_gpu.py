"""Digests of parameters on a GPU: made and compared there, by torch's operations, without waiting for the GPU.

    bits as whole numbers x weights, summed ──► one number a piece ──► one for all ──► pairs of bits in the tail
    both of a pair nonzero, anywhere? ──► a flag in pinned memory, which the host reads a reduction later

Launching a kernel costs the host about as much as hashing a window costs the GPU. So one reduction in `every` is
compared, with a window so many times larger. A difference is missed with a chance of about 2^-32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ringreduce._gradients.drift_digests import NOTHING, Taken
from ringreduce._gradients.drift_windows import Piece, in_memory_order
from ringreduce._ops import gpus

_SLICE = 4 << 20  # elements hashed at a time: 8 bytes of memory for each, twice
_WORD = {1: torch.uint8, 2: torch.int16}  # of what has so many bytes; int32 for all else


class GpuDigests:
    """Digests of memory on GPU `index`."""

    on_gpu = True
    every = 4

    def __init__(self, index: int) -> None:
        self._index = index
        self._weights = torch.empty(0)
        self._shifts: Tensor | None = None
        self._waiting: tuple[Taken, Callable[[], bool]] | None = None

    def take(self, step: int, window: tuple[int, int], pieces: Sequence[Piece]) -> Taken:
        """The digest of the pieces as they are now."""
        if not pieces or self._capturing():
            return NOTHING
        each = torch.stack([self._hash(piece) for piece in pieces])
        self._make_weights(each.numel(), each.device)
        return Taken(step, window, (each * self._first_weights(each)).sum(), each, pieces)

    def write(self, tail: Tensor, taken: Taken, round_number: int) -> None:
        """Write pairs of bits; zeros where this round is not compared."""
        if not self._compared(round_number):
            tail.zero_()
            return
        digest = taken.digest if isinstance(taken.digest, Tensor) else torch.zeros_like(tail[0], dtype=torch.int64)
        if self._shifts is None:
            bits = torch.arange(64, device=tail.device)
            self._shifts = torch.stack([bits, bits], 1)
            self._flip = torch.tensor([0, 1], device=tail.device)
        tail.copy_((((digest >> self._shifts) & 1) ^ self._flip).view(-1))

    def read(self, tail: Tensor, taken: Taken, round_number: int) -> tuple[Taken, bool]:
        """What was compared in an earlier round, and whether the ranks differed; enqueues the same for this one."""
        result = NOTHING, False
        if self._capturing():
            return result
        if self._waiting is not None:
            earlier, differ = self._waiting
            result = earlier, differ()
            self._waiting = None
        if self._compared(round_number):
            flag = (tail.view(64, 2) != 0).all(1).any()
            self._waiting = taken, gpus.backend.to_host_later(flag)
        return result

    def number(self, taken: Taken) -> int:
        """The digest. Waits for the GPU."""
        return int(taken.digest)

    def each(self, taken: Taken) -> list[int]:
        """The digests of the pieces. Waits for the GPU."""
        return taken.each.tolist() if isinstance(taken.each, Tensor) else list(taken.each)

    def _compared(self, round_number: int) -> bool:
        return round_number % self.every == self.every - 1 and not self._capturing()

    def _capturing(self) -> bool:
        return gpus.attached(self._index).capturing(gpus.backend.current_stream(self._index))

    def _hash(self, piece: Piece) -> Tensor:
        memory = in_memory_order(piece.tensor)[piece.begin : piece.end]
        if memory.is_complex():
            memory = torch.view_as_real(memory).view(-1)
        words = memory.view(_WORD.get(memory.element_size(), torch.int32))
        self._make_weights(min(words.numel(), _SLICE), words.device)
        total = torch.zeros((), dtype=torch.int64, device=words.device)
        for part in torch.split(words, _SLICE):
            total = total * 0x9E3779B1 + (part * self._first_weights(part)).sum()
        return total

    def _make_weights(self, least: int, device: torch.device) -> None:
        """The same on all ranks, however many there are of them."""
        if self._weights.numel() < least:
            self._weights = mix(torch.arange(least, device=device)) | 1

    def _first_weights(self, like: Tensor) -> Tensor:
        return self._weights[: like.numel()]


def mix(x: Tensor) -> Tensor:
    """Whole numbers that look like random ones: the finaliser of splitmix64, in int64."""
    x = (x + 1) * -0x61C8864680B583EB  # 0x9e3779b97f4a7c15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47  # 0xbf58476d1ce4e5b9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15  # 0x94d049bb133111eb
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
