"""alltoall: equal parts, and splits that differ from rank to rank."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same, every_dtype, make, several_chunks, short

import ringreduce as rr

# Rows that `source` sends to `target`.
SPLITS = {
    "equal": lambda source, target: 2,
    "growing": lambda source, target: source + 2 * target,
    "only to the next": lambda source, target: 5 if target == source + 1 else 0,
    "only from rank 0": lambda source, target: target + 1 if source == 0 else 0,
    "nothing": lambda source, target: 0,
    "primes": lambda source, target: (1_009, 0, 13, 2_003)[(source * 3 + target) % 4],
}


def sent(source: int, size: int, splits, row_shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    counts = [splits(source, target) for target in range(size)]
    return list(make(source, (sum(counts), *row_shape), dtype).split(counts))


def received(rank: int, size: int, splits, row_shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([sent(source, size, splits, row_shape, dtype)[rank] for source in range(size)])


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_splits(rank, size, dtype):
    for what, splits in SPLITS.items():
        for row_shape in ((), (3,)):
            mine = torch.cat(sent(rank, size, splits, row_shape, dtype))
            before = mine.clone()
            counts = [splits(rank, target) for target in range(size)]
            output, received_splits = rr.alltoall(mine, torch.tensor(counts, dtype=torch.int32))
            assert_same(output, received(rank, size, splits, row_shape, dtype), f"{what}, rows of {row_shape}")
            assert received_splits.dtype == torch.int32
            assert received_splits.tolist() == [splits(source, rank) for source in range(size)]
            assert torch.equal(mine, before)


@pytest.mark.smoke
def test_equal_parts_without_splits(rank, size):
    for rows, width in ((1, 1), (3, 2), (0, 2)):
        mine = make(rank, (rows * size, width), torch.float32)
        output = rr.alltoall(mine)
        parts = [
            make(source, (rows * size, width), torch.float32).split(rows or 1)[rank if rows else 0]
            for source in range(size)
        ]
        assert_same(output, torch.cat(parts), f"{rows} rows each")


def test_splits_may_be_a_list(rank, size):
    splits = SPLITS["growing"]
    mine = torch.cat(sent(rank, size, splits, (), torch.int64))
    output, received_splits = rr.alltoall(mine, [splits(rank, target) for target in range(size)])
    assert_same(output, received(rank, size, splits, (), torch.int64), "list")
    assert received_splits.tolist() == [splits(source, rank) for source in range(size)]


@pytest.mark.hosts
def test_several_chunks(rank, size):
    def splits(source: int, target: int) -> int:
        return several_chunks(torch.float32) // 2 + source if (source + target) % 2 == 0 else target

    mine = torch.cat(sent(rank, size, splits, (), torch.float32))
    output, _ = rr.alltoall(mine, [splits(rank, target) for target in range(size)])
    assert_same(output, received(rank, size, splits, (), torch.float32), "several chunks")


def test_not_contiguous(rank, size):
    mine = make(rank, (3, 2 * size), torch.int32).t()
    parts = [make(source, (3, 2 * size), torch.int32).t()[2 * rank : 2 * rank + 2] for source in range(size)]
    assert_same(rr.alltoall(mine), torch.cat(parts), "transposed")


def test_rows_without_elements_are_counted(rank, size):
    counts = [target + 1 for target in range(size)]
    output, received_splits = rr.alltoall(torch.empty(sum(counts), 0), counts)
    assert output.shape == ((rank + 1) * size, 0)
    assert received_splits.tolist() == [rank + 1] * size


def test_asynchronous_gives_the_pair_always(rank, size):
    mine = make(rank, 3 * size, torch.float64)
    first = rr.alltoall_async(mine, name="without splits")
    second = rr.alltoall_async(mine, [3] * size, name="with splits")
    expected = torch.cat([make(source, 3 * size, torch.float64)[3 * rank : 3 * rank + 3] for source in range(size)])
    for handle in (second, first):
        output, received_splits = rr.synchronize(handle)
        assert_same(output, expected, "asynchronous")
        assert received_splits.tolist() == [3] * size
