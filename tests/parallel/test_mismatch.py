"""Ranks that disagree: every participant gets the same error, which says who submitted what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import torch
from oracle import WORLD, assert_same, make, reduced

import ringreduce as rr

F32, F64 = torch.float32, torch.float64


def ones(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


# What the odd rank submits and what all others do, and what the message must say of both.
Call = Callable[[str | None], object]
CASES: dict[str, tuple[Call, Call, tuple[str, ...]]] = {
    "allreduce dtype": (
        lambda name: rr.allreduce(ones(3, dtype=F64), name),
        lambda name: rr.allreduce(ones(3), name),
        ("float64", "float32"),
    ),
    "allreduce number of elements": (
        lambda name: rr.allreduce(ones(17), name),
        lambda name: rr.allreduce(ones(3), name),
        ("17", "3"),
    ),
    "allreduce shape, same number of elements": (
        lambda name: rr.allreduce(ones(2, 6), name),
        lambda name: rr.allreduce(ones(3, 4), name),
        ("2", "6", "3", "4"),
    ),
    "allreduce operation": (
        lambda name: rr.allreduce(ones(3), name, op=rr.Min),
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum),
        ("[Mm]in", "[Ss]um"),
    ),
    "allreduce Average and Sum": (
        lambda name: rr.allreduce(ones(3), name, op=rr.Average),
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum),
        ("[Aa]verage", "[Ss]um"),
    ),
    "allreduce prescale": (
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum, prescale_factor=0.375),
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum),
        ("prescale", r"0\.375"),
    ),
    "allreduce postscale": (
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum, postscale_factor=0.375),
        lambda name: rr.allreduce(ones(3), name, op=rr.Sum),
        ("postscale", r"0\.375"),
    ),
    "grouped, number of tensors": (
        lambda name: rr.grouped_allreduce([ones(3), ones(4)], name),
        lambda name: rr.grouped_allreduce([ones(3)], name),
        ("3", "4"),
    ),
    "allreduce large and small": (
        lambda name: rr.allreduce(ones(300_000), name),
        lambda name: rr.allreduce(ones(1), name),
        ("300000", "1"),
    ),
    "broadcast root": (
        lambda name: rr.broadcast(ones(3), 0, name),
        lambda name: rr.broadcast(ones(3), 1, name),
        ("(root|from) (rank )?0", "(root|from) (rank )?1"),
    ),
    "broadcast shape": (
        lambda name: rr.broadcast(ones(9), 0, name),
        lambda name: rr.broadcast(ones(3), 0, name),
        ("9", "3"),
    ),
    "broadcast dtype": (
        lambda name: rr.broadcast(ones(3, dtype=F64), 0, name),
        lambda name: rr.broadcast(ones(3), 0, name),
        ("float64", "float32"),
    ),
    "allgather row shape": (
        lambda name: rr.allgather(ones(2, 7), name),
        lambda name: rr.allgather(ones(2, 3), name),
        ("7", "3"),
    ),
    "allgather dtype": (
        lambda name: rr.allgather(ones(2, dtype=F64), name),
        lambda name: rr.allgather(ones(2), name),
        ("float64", "float32"),
    ),
    "reducescatter shape": (
        lambda name: rr.reducescatter(ones(9, 2), name),
        lambda name: rr.reducescatter(ones(8, 2), name),
        ("9", "8"),
    ),
    "reducescatter operation": (
        lambda name: rr.reducescatter(ones(8), name, op=rr.Sum),
        lambda name: rr.reducescatter(ones(8), name),
        ("[Ss]um", "[Aa]verage"),
    ),
    "alltoall row shape": (
        lambda name: rr.alltoall(ones(WORLD.size, 7), None, name),
        lambda name: rr.alltoall(ones(WORLD.size, 3), None, name),
        ("7", "3"),
    ),
    "alltoall dtype": (
        lambda name: rr.alltoall(ones(WORLD.size, dtype=F64), None, name),
        lambda name: rr.alltoall(ones(WORLD.size), None, name),
        ("float64", "float32"),
    ),
    "reduce root": (
        lambda name: rr.reduce(ones(3), 0, name),
        lambda name: rr.reduce(ones(3), 1, name),
        ("reduce Average of float32 \\[3\\] on cpu to rank 0", "to rank 1"),
    ),
    "reduce operation": (
        lambda name: rr.reduce(ones(3), 0, name, op=rr.Max),
        lambda name: rr.reduce(ones(3), 0, name),
        ("Max", "Average"),
    ),
    "gather root": (
        lambda name: rr.gather(ones(2, 3), 0, name),
        lambda name: rr.gather(ones(3, 3), 1, name),
        ("gather of float32 rows \\[3\\] on cpu to rank 0", "to rank 1"),
    ),
    "scatter row shape": (
        lambda name: rr.scatter(ones(WORLD.size, 7), 0, None, name),
        lambda name: rr.scatter(ones(WORLD.size, 3), 0, None, name),
        ("scatter of float32 rows \\[7\\] on cpu from rank 0", "rows \\[3\\]"),
    ),
}
KINDS: dict[str, tuple[Call, Call, tuple[str, ...]]] = {  # unnamed: with a name these are two operations
    "allreduce and allgather": (
        lambda name: rr.allreduce(ones(3)),
        lambda name: rr.allgather(ones(3)),
        ("allreduce", "allgather"),
    ),
    "broadcast and reducescatter": (
        lambda name: rr.broadcast(ones(8), 0),
        lambda name: rr.reducescatter(ones(8)),
        ("broadcast", "reducescatter"),
    ),
}


def outcome(call: Call, name: str | None) -> str:
    """The text of the RingreduceError that the call raises."""
    with pytest.raises(rr.RingreduceError) as info:
        call(name)
    return str(info.value)


def assert_told(message: str, odd: int, name: str | None, words: tuple[str, ...]) -> None:
    messages = WORLD.allgather(message)
    assert len(set(messages)) == 1, f"the ranks were told different things: {messages}"
    if name is not None:
        assert name in message
    for word in (*words, rf"\b{odd}\b", "rank"):
        assert re.search(word, message), f"{word!r} is missing in: {message}"


def assert_still_works(rank: int, size: int) -> None:
    result = rr.allreduce(make(rank, 1_001, F32), op=rr.Sum)
    assert_same(result, reduced(range(size), 1_001, F32, rr.Sum), "afterwards")
    assert rr.allgather(torch.tensor([rank])).tolist() == list(range(size))


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("case", CASES)
def test_everybody_is_told(rank, size, case, named):
    if size == 1:
        pytest.skip("one rank agrees with itself")
    odd_call, call, words = CASES[case]
    name = f"{case}." if named else None
    for odd in (0, size - 1):
        message = outcome(odd_call if rank == odd else call, name)
        assert_told(message, odd, name, words)
        assert_still_works(rank, size)


@pytest.mark.parametrize("case", KINDS)
def test_different_kinds(rank, size, case):
    if size == 1:
        pytest.skip("one rank agrees with itself")
    odd_call, call, words = KINDS[case]
    message = outcome(odd_call if rank == size - 1 else call, None)
    assert_told(message, size - 1, None, words)
    assert_still_works(rank, size)


@pytest.mark.smoke
def test_asynchronous_and_others_in_flight(rank, size):
    """Only the operation about which they disagree fails."""
    if size == 1:
        pytest.skip("one rank agrees with itself")
    before = rr.allreduce_async(make(rank, 2_003, F32), name="good before", op=rr.Sum)
    bad = rr.allreduce_async(ones(3, dtype=F64 if rank == 1 else F32), name="bad", op=rr.Sum)
    after = rr.allreduce_async(make(rank, 50, F32), name="good after", op=rr.Sum)
    with pytest.raises(rr.RingreduceError, match="bad"):
        rr.synchronize(bad)
    assert_same(rr.synchronize(after), reduced(range(size), 50, F32, rr.Sum), "after")
    assert_same(rr.synchronize(before), reduced(range(size), 2_003, F32, rr.Sum), "before")
    again = rr.allreduce(ones(3), name="bad", op=rr.Sum)
    assert again.tolist() == [float(size)] * 3


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_in_place(rank, size, late):
    """The short way of small allreduces in place, too."""
    if size == 1:
        pytest.skip("one rank agrees with itself")
    if late and rank == 0:
        time.sleep(0.05)
    message = outcome(lambda _name: rr.allreduce_(ones(3, dtype=F64 if rank == size - 1 else F32)), None)
    assert_told(message, size - 1, None, ("float64", "float32"))
    assert_still_works(rank, size)


def test_in_a_process_set(rank, size):
    """The members are told, with their global ranks; the others notice nothing."""
    if size < 3:
        pytest.skip("needs 3 ranks")
    process_set = rr.add_process_set([1, 2])
    if process_set.included():
        tensor = ones(3, dtype=F64 if rank == 2 else F32)
        with pytest.raises(rr.RingreduceError, match=r"float64") as info:
            rr.allreduce(tensor, name="in a set", process_set=process_set)
        assert re.search(r"\b1\b", str(info.value))
        assert re.search(r"\b2\b", str(info.value))
        assert rr.allreduce(ones(1), op=rr.Sum, process_set=process_set).item() == 2
    assert_still_works(rank, size)
    rr.remove_process_set(process_set)
