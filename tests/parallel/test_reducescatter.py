"""reducescatter: dimension 0 is divided, the first ranks get the rows that are left over."""

from __future__ import annotations

import pytest
import torch
from oracle import (
    NUMBERS,
    OP_NAMES,
    Digest,
    assert_same,
    average_ulps,
    every_dtype,
    make,
    reduced,
    several_chunks,
    short,
)

import ringreduce as rr


def part(tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """Rank `rank`'s rows: dim0 // size of them, one more on the first dim0 % size ranks."""
    rows, extra = divmod(tensor.shape[0], size)
    begin = rank * rows + min(rank, extra)
    return tensor[begin : begin + rows + (rank < extra)]


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(NUMBERS), ids=short)
def test_exact(rank, size, dtype):
    for op in (rr.Sum, rr.Average):
        for rows in sorted({0, 1, size - 1, size, size + 1, 10_007, several_chunks(dtype)}):
            mine = make(rank, rows, dtype)
            before = mine.clone()
            result = rr.reducescatter(mine, op=op)
            ulps = average_ulps(size) if op == rr.Average else 0
            expected = part(reduced(range(size), rows, dtype, op), rank, size)
            assert_same(result, expected, f"{OP_NAMES[op]} of {rows} {short(dtype)}", ulps=ulps)
            assert torch.equal(mine, before)


@pytest.mark.smoke
def test_rows(rank, size):
    for shape in ((size, 3), (2 * size + 1, 2, 2), (5, 0), (3, 1_001)):
        result = rr.reducescatter(make(rank, shape, torch.float32), op=rr.Sum)
        assert_same(result, part(reduced(range(size), shape, torch.float32, rr.Sum), rank, size), str(shape))


def test_average_is_the_default(rank, size):
    result = rr.reducescatter(torch.full((size, 2), rank + 1.0))
    assert_same(result, torch.full((1, 2), (size + 1) / 2), "default", ulps=average_ulps(size))


def test_scale_factors(rank, size):
    for dtype in (torch.float32, torch.bfloat16, torch.int32):
        result = rr.reducescatter(make(rank, 1_009, dtype), op=rr.Sum, prescale_factor=0.5, postscale_factor=2.0)
        assert_same(result, part(reduced(range(size), 1_009, dtype, rr.Sum, 0.5, 2.0), rank, size), short(dtype))


def test_not_contiguous(rank, size):
    result = rr.reducescatter(make(rank, (30, 41), torch.float64).t(), op=rr.Sum)
    total = reduced(range(size), (30, 41), torch.float64, rr.Sum).t()
    assert_same(result, part(total, rank, size), "transposed")


def test_same_bits_run_after_run(rank, size):
    generator = torch.Generator().manual_seed(rank)
    mine = torch.randn(200_003, generator=generator)
    results = [rr.reducescatter(mine, op=rr.Sum) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    whole = Digest()
    whole.add(rr.allgather(results[0]))
    whole.assert_same_everywhere()


def test_asynchronous(rank, size):
    inputs = [make(rank, (k + size, 2), torch.int64) for k in range(5)]
    handles = [rr.reducescatter_async(t, name=f"rs {k}", op=rr.Sum) for k, t in enumerate(inputs)]
    for k, handle in reversed(list(enumerate(handles))):
        total = reduced(range(size), (k + size, 2), torch.int64, rr.Sum)
        assert_same(rr.synchronize(handle), part(total, rank, size), f"rs {k}")
