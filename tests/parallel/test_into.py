"""allgather_into, reducescatter_into, alltoall_into: the same results, in memory that is there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import assert_same, every_dtype, make, several_chunks, short

import ringreduce as rr


def cuts(rows: int) -> list[list[int]]:
    """Ways to have room for so many rows."""
    return [[rows], [1, 0, rows - 1], [rows // 2, rows - rows // 2]] if rows else [[0], [0, 0]]


def check(call: Callable[[object], object], expected: torch.Tensor) -> None:
    """The call fills every kind of output with what is expected."""
    for sizes in cuts(expected.shape[0]):
        pieces = [torch.full((rows, *expected.shape[1:]), 1, dtype=expected.dtype) for rows in sizes]
        call(pieces)
        assert_same(torch.cat(pieces), expected, f"in pieces of {sizes}")
    for single in (torch.empty_like(expected), torch.empty_like(expected.t()).t() if expected.dim() == 2 else None):
        if single is not None:
            before, version = single.data_ptr(), single._version
            call(single)
            assert_same(single, expected, f"strides {single.stride()}")
            assert single.data_ptr() == before
            assert single._version > version


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_every_dtype(rank, size, dtype):
    for rows, row in ((2, (3,)), (1_001, ())):
        mine = make(rank, (rows + rank, *row), dtype)
        check(lambda output, mine=mine: rr.allgather_into(output, mine), rr.allgather(mine))
        splits = [rows + target + rank for target in range(size)]
        mine = make(rank, (sum(splits), *row), dtype)
        expected, counts = rr.alltoall(mine, splits)
        check(lambda output, mine=mine, splits=splits: rr.alltoall_into(output, mine, splits), expected)
        room = torch.empty_like(expected)
        assert rr.alltoall_into(room, mine, splits).tolist() == counts.tolist()
        mine = make(rank, (rows * size + 1, *row), dtype)
        expected = rr.reducescatter(mine, op=rr.Sum)
        check(lambda output, mine=mine: rr.reducescatter_into(output, mine, op=rr.Sum), expected)


@pytest.mark.hosts
@pytest.mark.smoke
def test_several_chunks(rank, size):
    rows = several_chunks(torch.float32)
    mine = make(rank, rows + rank, torch.float32)
    check(
        lambda output: rr.allgather_into(output, mine),
        torch.cat([make(r, rows + r, torch.float32) for r in range(size)]),
    )
    whole = make(rank, rows * size, torch.float32)
    parts = [make(r, rows * size, torch.float32)[rank * rows : (rank + 1) * rows] for r in range(size)]
    check(lambda output: rr.alltoall_into(output, whole), torch.cat(parts))
    check(lambda output: rr.reducescatter_into(output, whole, op=rr.Sum), sum(parts))


def test_nothing_and_rows_without_elements(rank, size):
    check(lambda output: rr.allgather_into(output, torch.empty(0)), torch.empty(0))
    check(lambda output: rr.reducescatter_into(output, torch.empty(0, 2)), torch.empty(0, 2))
    check(lambda output: rr.allgather_into(output, torch.empty(3, 0)), torch.empty(3 * size, 0))
    with pytest.raises(ValueError, match="output"):
        rr.allgather_into(torch.empty(3 * size + 1, 0), torch.empty(3, 0))


def test_asynchronous(rank, size):
    mine = make(rank, 4 * size, torch.float64)
    room = [torch.empty(4 * size * size).double(), torch.empty(4).double(), torch.empty(4 * size).double()]
    handles = [
        rr.allgather_into_async(room[0], mine, "a"),
        rr.reducescatter_into_async(room[1], mine, "b", op=rr.Sum),
        rr.alltoall_into_async(room[2], mine, None, "c"),
    ]
    results = [rr.synchronize(handle) for handle in reversed(handles)]
    assert results[2] is room[0]
    assert results[1] is room[1]
    assert results[0].tolist() == [4] * size
    for got, expected in zip(
        room, (rr.allgather(mine), rr.reducescatter(mine, op=rr.Sum), rr.alltoall(mine)), strict=True
    ):
        assert_same(got, expected, "asynchronous")


@pytest.mark.hosts
def test_an_output_of_another_size_is_its_ranks_own_mistake(rank, size):
    for rows in (3, 5_000):
        mine = make(rank, rows, torch.float32)
        wrong = rank == size - 1
        for pieces in (1, 2):
            output = [torch.empty(rows * size // pieces * pieces // pieces + (i == 0 and wrong)) for i in range(pieces)]
            if pieces == 2:
                output[1] = torch.empty(rows * size - rows * size // 2)
            if wrong:
                with pytest.raises(ValueError, match="output"):
                    rr.allgather_into(output, mine)
            else:
                rr.allgather_into(output, mine)
                assert_same(torch.cat(output), torch.cat([make(r, rows, torch.float32) for r in range(size)]), "right")
    rr.barrier()


def test_errors(rank, size):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="output: expected rows like those of tensor"):
        rr.allgather_into(torch.empty(2 * size, 4), x)
    with pytest.raises(ValueError, match=r"output\[1\]: expected rows like those of tensor"):
        rr.allgather_into([torch.empty(size, 3), torch.empty(size, 3).double()], x)
    with pytest.raises(ValueError, match="output: got a tensor that requires grad"):
        rr.alltoall_into(torch.empty(2 * size, 3, requires_grad=True), torch.ones(size, 3))
    with pytest.raises(ValueError, match="output: has room for"):
        rr.reducescatter_into(torch.empty(5, 3), torch.ones(2 * size, 3))


def test_what_is_read_must_not_be_written(rank, size):
    """Results over the input, or over each other, would be wrong where there are several steps."""
    memory = torch.ones(4 * size, 3)
    half = torch.ones(2 * size, 3)
    for call in (
        lambda: rr.alltoall_into(memory, memory),
        lambda: rr.allgather_into(memory, memory[:4]),
        lambda: rr.reducescatter_into(memory[:4], memory),
        lambda: rr.alltoall_into([half, half], torch.ones(4 * size, 3)),
        lambda: rr.alltoall_into([memory[: 2 * size], memory[size : 3 * size]], torch.ones(4 * size, 3)),
    ):
        with pytest.raises(ValueError, match="overlap"):
            call()
    rows = [memory[: 2 * size], memory[2 * size :]]  # side by side is apart
    rr.alltoall_into(rows, torch.full((4 * size, 3), float(rank)))
    assert_same(memory, torch.arange(float(size)).repeat_interleave(4)[:, None].expand(-1, 3).contiguous(), "in two")


def test_no_gradient_is_lost(size):
    weight = torch.ones(size, 2, requires_grad=True)
    for call in (rr.allgather_into, rr.reducescatter_into, rr.alltoall_into):
        with pytest.raises(ValueError, match="requires grad"):
            call(torch.empty(size, 2), weight)
    with torch.no_grad():
        rr.alltoall_into(torch.empty(size, 2), weight)


def test_a_conjugated_output_reads_as_the_result(size):
    mine, buffer = torch.full((1,), 1 + 2j), torch.zeros(size, dtype=torch.complex64)
    view = buffer.conj()
    rr.allgather_into(view, mine)
    assert_same(view.resolve_conj(), rr.allgather(mine), "conj")


def test_an_output_of_another_size_frees_the_name(size):
    for _ in range(2):
        handle = rr.allgather_into_async(torch.empty(size + 1), torch.ones(1), name="too large")
        with pytest.raises(ValueError, match="has room for"):
            rr.synchronize(handle)
