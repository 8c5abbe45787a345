"""scatter: the root's rows, a part for each rank."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same, every_dtype, make, several_chunks, short

import ringreduce as rr

# Rows for a rank.
SPLITS = {
    "equal": lambda rank: 2,
    "growing": lambda rank: 3 * rank,
    "only rank 0": lambda rank: 0 if rank else 7,
    "nothing": lambda rank: 0,
    "primes": lambda rank: (1_009, 0, 13, 2_003)[rank % 4],
}


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_splits(rank, size, dtype):
    for number, (what, rows) in enumerate(SPLITS.items()):
        root, splits = number % size, [rows(target) for target in range(size)]
        for row_shape in ((), (3,)):
            whole = make(root, (sum(splits), *row_shape), dtype)
            mine = whole.clone() if rank == root else torch.empty((rank, *row_shape), dtype=dtype)
            result = rr.scatter(mine, root, splits if rank == root else None)
            assert_same(result, whole.split(splits)[rank], f"{what}, rows of {row_shape}")
            assert rank != root or torch.equal(mine, whole)


@pytest.mark.hosts
@pytest.mark.smoke
def test_equal_parts_and_several_chunks(rank, size):
    for root in {0, size - 1}:
        for rows in (1, several_chunks(torch.float32)):
            whole = make(root, rows * size, torch.float32)
            result = rr.scatter(whole if rank == root else torch.empty(0), root)
            assert_same(result, whole[rank * rows : (rank + 1) * rows], f"{rows} from {root}")


def test_rows_without_elements_are_counted(rank, size):
    root = size - 1
    splits = torch.arange(1, size + 1, dtype=torch.int32)
    mine = torch.empty(int(splits.sum()) if rank == root else 0, 0)
    assert rr.scatter(mine, root, splits).shape == (rank + 1, 0)


def test_asynchronous_and_not_contiguous(rank, size):
    whole = make(0, (3, 2 * size), torch.int32).t()
    handle = rr.scatter_async(whole if rank == 0 else whole[:0], 0, name="x")
    assert_same(rr.synchronize(handle), whole[2 * rank : 2 * rank + 2], "transposed")


def test_derivative_goes_to_the_root(rank, size):
    root = size - 1
    x = torch.ones(2 * size if rank == root else 3, 2, dtype=torch.float64, requires_grad=True)
    (rr.scatter(x, root) * (rank + 1)).sum().backward()
    expected = torch.zeros(3, 2).double()
    if rank == root:
        expected = torch.arange(1.0, size + 1).double().repeat_interleave(2)[:, None].expand(-1, 2)
    assert_same(x.grad, expected, "gradient")


def test_errors(rank, size):
    with pytest.raises(ValueError, match="root_rank"):
        rr.scatter(torch.ones(2), size)
    with pytest.raises(ValueError, match="scalar"):
        rr.scatter(torch.tensor(1.0), 0)
    if rank == 0:  # refused before anything is sent
        with pytest.raises(ValueError, match="splits"):
            rr.scatter(torch.ones(size + 2), 0, [size + 1, *[0] * (size - 1)])
