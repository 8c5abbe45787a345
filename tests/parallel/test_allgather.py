"""allgather: blocks of any number of rows, in rank order, the same everywhere."""

from __future__ import annotations

import pytest
import torch
from oracle import Digest, assert_same, every_dtype, make, several_chunks, short

import ringreduce as rr

# Rows of each rank, as a function of (rank, size).
ROWS = {
    "one each": lambda rank, size: 1,
    "growing": lambda rank, size: rank + 1,
    "none on even ranks": lambda rank, size: 0 if rank % 2 == 0 else 3,
    "only the last rank": lambda rank, size: 5 if rank == size - 1 else 0,
    "none at all": lambda rank, size: 0,
    "a prime": lambda rank, size: 10_007 - rank,
}


def gathered(size: int, rows, row_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([make(rank, (rows(rank, size), *row_shape), dtype) for rank in range(size)])


@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_exact(rank, size, dtype):
    digest = Digest()
    for what, rows in ROWS.items():
        for row_shape in ((), (3,), (2, 2)):
            mine = make(rank, (rows(rank, size), *row_shape), dtype)
            before = mine.clone()
            result = rr.allgather(mine)
            digest.add(result)
            assert_same(result, gathered(size, rows, row_shape, dtype), f"{what}, rows of {row_shape}")
            assert torch.equal(mine, before)
    digest.assert_same_everywhere()


@pytest.mark.smoke
def test_rows_differ_by_rank(rank, size):
    def rows(rank: int, size: int) -> int:
        return rank % 3

    assert_same(
        rr.allgather(make(rank, (rows(rank, size), 4), torch.float32)),
        gathered(size, rows, (4,), torch.float32),
        "rows",
    )


@pytest.mark.hosts
@pytest.mark.parametrize("heavy", ["every rank", "first rank", "last rank"])
def test_several_chunks(rank, size, heavy):
    def rows(rank: int, size: int) -> int:
        chosen = {"every rank": True, "first rank": rank == 0, "last rank": rank == size - 1}[heavy]
        return several_chunks(torch.float32) // 3 if chosen else rank % 2

    for _ in range(2):
        result = rr.allgather(make(rank, (rows(rank, size), 3), torch.float32))
        assert_same(result, gathered(size, rows, (3,), torch.float32), heavy)


def test_rows_without_elements_are_counted(rank, size):
    result = rr.allgather(torch.empty(rank + 1, 0))
    assert_same(result, torch.empty(size * (size + 1) // 2, 0), "empty rows")


@pytest.mark.parametrize("bytes_of", [4087, 4088, 4089], ids=["below", "at", "above"])
def test_around_the_limit_of_inline_data(rank, size, bytes_of):
    """Up to 4088 bytes travel with the submission, if all ranks' do; sizes always do, on one host."""
    for rows in (lambda rank, size: bytes_of, lambda rank, size: bytes_of if rank == size - 1 else rank):
        for _ in range(3):  # entries of the table are used again
            mine = make(rank, (rows(rank, size),), torch.uint8)
            assert_same(rr.allgather(mine), gathered(size, rows, (), torch.uint8), f"{mine.numel()} bytes")


def test_not_contiguous(rank, size):
    mine = make(rank, (6, 8), torch.int32).t()[1::2]
    parts = [make(other, (6, 8), torch.int32).t()[1::2] for other in range(size)]
    assert_same(rr.allgather(mine), torch.cat(parts), "strided")


def test_result_is_a_new_tensor(rank):
    mine = torch.full((2, 2), float(rank))
    result = rr.allgather(mine)
    result.zero_()
    assert mine.tolist() == [[rank, rank]] * 2


def test_asynchronous(rank, size):
    handles = [rr.allgather_async(make(rank, (rank + k, 2), torch.int64), name=f"gather {k}") for k in range(5)]
    for k, handle in reversed(list(enumerate(handles))):
        expected = torch.cat([make(other, (other + k, 2), torch.int64) for other in range(size)])
        assert_same(rr.synchronize(handle), expected, f"gather {k}")
