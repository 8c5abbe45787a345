"""gather: the rows of all ranks on the root, nothing elsewhere."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same, every_dtype, make, several_chunks, short

import ringreduce as rr

# Rows that a rank gives.
ROWS = {
    "equal": lambda rank: 2,
    "growing": lambda rank: 3 * rank,
    "only rank 0": lambda rank: 0 if rank else 7,
    "nothing": lambda rank: 0,
    "primes": lambda rank: (1_009, 0, 13, 2_003)[rank % 4],
}


def expected(rank: int, size: int, root: int, rows, row_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    parts = [make(source, (rows(source), *row_shape), dtype) for source in range(size)]
    return torch.cat(parts) if rank == root else torch.empty((0, *row_shape), dtype=dtype)


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_rows_of_all_sizes(rank, size, dtype):
    for number, (what, rows) in enumerate(ROWS.items()):
        root = number % size
        for row_shape in ((), (3,)):
            mine = make(rank, (rows(rank), *row_shape), dtype)
            result = rr.gather(mine, root)
            assert_same(result, expected(rank, size, root, rows, row_shape, dtype), f"{what}, rows of {row_shape}")
            assert torch.equal(mine, make(rank, (rows(rank), *row_shape), dtype))


@pytest.mark.hosts
@pytest.mark.smoke
def test_several_chunks(rank, size):
    rows = several_chunks(torch.float32)
    for root in {0, size - 1}:
        result = rr.gather(make(rank, rows + rank, torch.float32), root)
        assert_same(result, expected(rank, size, root, lambda r: rows + r, (), torch.float32), f"root {root}")


def test_rows_without_elements_are_counted(rank, size):
    result = rr.gather(torch.empty(rank + 1, 0), size - 1)
    assert result.shape == ((size * (size + 1) // 2 if rank == size - 1 else 0), 0)


def test_asynchronous_and_not_contiguous(rank, size):
    handle = rr.gather_async(make(rank, (3, 4), torch.int32).t(), 0, "x")
    parts = [make(source, (3, 4), torch.int32).t() for source in range(size)]
    assert_same(rr.synchronize(handle), torch.cat(parts) if rank == 0 else parts[0][:0], "transposed")


def test_derivative_is_what_the_root_has(rank, size):
    root = size - 1
    x = torch.ones(rank + 1, 2, dtype=torch.float64, requires_grad=True)
    rows = rr.gather(x, root)
    weights = torch.arange(rows.numel(), dtype=torch.float64).view(rows.shape)
    (rows * weights).sum().backward()
    begin = rank * (rank + 1) // 2
    assert_same(x.grad, torch.arange(2.0 * begin, 2.0 * (begin + rank + 1)).double().view(-1, 2), "gradient")


def test_errors(rank, size):
    with pytest.raises(ValueError, match="root_rank"):
        rr.gather(torch.ones(2), size)
    with pytest.raises(ValueError, match="scalar"):
        rr.gather(torch.tensor(1.0), 0)
