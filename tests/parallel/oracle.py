"""Inputs whose results are known exactly, and checks that do not go through ringreduce.

Element `i` of rank `r`'s input is a small integer that depends on both, so that every sum and
product over 16 ranks is a whole number which each element type holds exactly. The expected
result is computed from the integers (int64, or complex128), never with the library. Ranks
compare their results through mpi4py.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mpi4py import MPI

import ringreduce as rr

WORLD = MPI.COMM_WORLD

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
NUMBERS = (*INTEGERS, *FLOATS, *COMPLEX)
DTYPES = (*NUMBERS, torch.bool)
FEW = (torch.int8, torch.bfloat16, torch.float32)

# After so many elements the inputs repeat (the least common multiple of all that the rule below
# divides by), which spares most of the work for large tensors. No chunk is a multiple of it.
PERIOD = 3 * 5 * 7 * 8 * 11 * 13

OP_NAMES = {rr.Sum: "Sum", rr.Average: "Average", rr.Min: "Min", rr.Max: "Max", rr.Product: "Product"}


def every_dtype(dtypes: Sequence[torch.dtype] = DTYPES) -> list[Any]:
    """For parametrize: all dtypes where tests run that are marked `once`, elsewhere some of each kind.

    What is done with the numbers is a matter of the kernels, however they came.
    """
    return [pytest.param(dtype, marks=[pytest.mark.once] * (dtype not in FEW)) for dtype in dtypes]


def ops_for(dtype: torch.dtype) -> tuple[int, ...]:
    """The reductions that have a meaning for `dtype`."""
    if dtype == torch.bool:
        return (rr.Sum, rr.Min, rr.Max, rr.Product)
    if dtype in COMPLEX:
        return (rr.Sum, rr.Average, rr.Product)
    return (rr.Sum, rr.Average, rr.Min, rr.Max, rr.Product)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def several_chunks(dtype: torch.dtype) -> int:
    """Elements that need several chunks and, between hosts, several segments; not a round number."""
    return (5 << 18) // dtype.itemsize + 5


def sizes(dtype: torch.dtype, size: int) -> list[int]:
    """The element counts to try: around the number of ranks, a prime, several chunks."""
    return sorted({0, 1, max(size - 1, 0), size, size + 1, 10_007, several_chunks(dtype)})


def integers(rank: int, numel: int, dtype: torch.dtype, op: int = rr.Sum) -> torch.Tensor:
    """What rank `rank` contributes, as int64 (or complex128) [numel]; it repeats every PERIOD."""
    index = torch.arange(numel, dtype=torch.int64)
    if dtype == torch.bool:
        return (index * 5 + rank * 3 + index // 7 * rank) % 3 % 2
    if op == rr.Product:  # ones, a 2 or two, a 0 now and then
        values = torch.where((index + rank) % 8 == 0, 2, 1)
        values = torch.where((index % 11 == 3) & (index % 5 == rank % 5), 0, values)
        signed = torch.where((index * 3 + rank) % 5 == 0, -values, values)
    else:
        values = (index * 7 + rank * 3 + index // 13 * rank) % 8
        signed = (index * 7 + rank * 3 + index // 13 * rank) % 15 - 7
    if dtype in COMPLEX:
        imaginary = (index + 3 * rank) % 4 == 1
        if op == rr.Product:
            return torch.where(imaginary, signed * 1j, signed + 0j).to(torch.complex128)
        return torch.complex(signed.double(), (signed * 5 % 7).double())
    return values if dtype == torch.uint8 else signed


def shaped(period: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A new tensor that holds `period` over and over."""
    numel = math.prod(shape)
    short = period.to(dtype, copy=True)
    return (short if numel <= PERIOD else short.repeat(numel // PERIOD + 1)[:numel].clone()).reshape(shape)


def make(rank: int, shape: int | Sequence[int], dtype: torch.dtype, op: int = rr.Sum) -> torch.Tensor:
    """What rank `rank` contributes, a new tensor of this shape and dtype."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return shaped(integers(rank, min(math.prod(shape), PERIOD), dtype, op), shape, dtype)


def reduced(
    ranks: Sequence[int],
    shape: int | Sequence[int],
    dtype: torch.dtype,
    op: int,
    prescale: float = 1.0,
    postscale: float = 1.0,
) -> torch.Tensor:
    """The exact result of reducing what `make` gives for `ranks`.

    Integers are scaled in float64 and truncated; the factors must be powers of two otherwise.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    parts = [integers(rank, min(math.prod(shape), PERIOD), dtype, op) for rank in ranks]
    whole = dtype in INTEGERS
    if prescale != 1.0:
        parts = [scaled(part, prescale, whole) for part in parts]
    total = parts[0]
    for part in parts[1:]:
        if op in (rr.Sum, rr.Average):
            total = total + part
        elif op == rr.Product:
            total = total * part
        else:
            total = torch.minimum(total, part) if op == rr.Min else torch.maximum(total, part)
    if dtype == torch.bool:
        total = total != 0
    if op == rr.Average:
        postscale /= len(ranks)
    if postscale != 1.0:
        total = scaled(total, postscale, whole)
    return shaped(total, shape, dtype)


def scaled(values: torch.Tensor, factor: float, whole: bool) -> torch.Tensor:
    if values.is_complex():
        return values * factor
    exact = values.double() * factor
    return exact.trunc() if whole else exact


def assert_same(result: torch.Tensor, expected: torch.Tensor, what: str, *, ulps: int = 0) -> None:
    """Same dtype, shape and values; `ulps` allows for a division that is not exact."""
    assert result.dtype == expected.dtype, f"{what}: {result.dtype}, not {expected.dtype}"
    assert result.shape == expected.shape, f"{what}: {tuple(result.shape)}, not {tuple(expected.shape)}"
    if torch.equal(result, expected):
        return
    rtol = 0.0
    if ulps and (expected.is_floating_point() or expected.is_complex()):
        rtol = ulps * torch.finfo(expected.dtype).eps
    close = torch.isclose(result, expected, rtol=rtol, atol=0.0)
    wrong = (~close).flatten().nonzero().flatten()
    if wrong.numel():
        at = int(wrong[0])
        got, want = result.flatten()[at].item(), expected.flatten()[at].item()
        raise AssertionError(f"{what}: {wrong.numel()} of {close.numel()} wrong, the first at {at}: {got}, not {want}")


def average_ulps(size: int) -> int:
    """How far an average may be from the exact one: not at all where 1/size is exact."""
    return 0 if size & (size - 1) == 0 else 2


def raw(tensor: torch.Tensor) -> bytes:
    """The tensor's bytes, whatever its dtype."""
    tensor = tensor.detach().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""


class Digest:
    """Gathers results, and asserts at the end that every rank has gathered the same bits."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            self._hash.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            self._hash.update(raw(tensor))

    def assert_same_everywhere(self) -> None:
        digests = WORLD.allgather(self._hash.hexdigest())
        assert len(set(digests)) == 1, f"ranks differ in their results: {digests}"
