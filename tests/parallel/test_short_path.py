"""Small operations: every kind, at the sizes where the way changes, short and long, with a name and without.

The long way is that of the asynchronous forms. Both are compared with exact results, so with each other.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import DTYPES, assert_same, make, ops_for, reduced, short

import ringreduce as rr
from ringreduce import _core

SMALL = _core.SMALL_BYTES


def sizes(dtype: torch.dtype, size: int) -> list[int]:
    """Elements: none, one, a few, the last small size and those beside it, in whole shares."""
    most = SMALL // dtype.itemsize
    return sorted({0, 1, size, 3 * size, most - 1, most, most + 1, most // size * size})


def waited(handle: rr.Handle) -> torch.Tensor:
    return rr.synchronize(handle)


# Each takes tensor, name and root, and gives what this rank gets.
Call = Callable[[torch.Tensor, "str | None", int], torch.Tensor]

REDUCED: dict[str, Call] = {
    "new": lambda x, name, root: rr.allreduce(x, name, op=rr.Sum),
    "in place": lambda x, name, root: rr.allreduce_(x.clone(), name, op=rr.Sum),
    "long": lambda x, name, root: waited(rr.allreduce_async(x, name, op=rr.Sum)),
    "long, in place": lambda x, name, root: waited(rr.allreduce_async_(x.clone(), name, op=rr.Sum)),
    "grouped": lambda x, name, root: torch.cat(rr.grouped_allreduce([x[:1], x[1:]], name, op=rr.Sum)),
}
FROM_ROOT: dict[str, Call] = {
    "new": lambda x, name, root: rr.broadcast(x, root, name),
    "in place": lambda x, name, root: rr.broadcast_(x.clone(), root, name),
    "long": lambda x, name, root: waited(rr.broadcast_async(x, root, name)),
    "long, in place": lambda x, name, root: waited(rr.broadcast_async_(x.clone(), root, name)),
}
TO_ROOT: dict[str, Call] = {
    "new": lambda x, name, root: rr.reduce(x, root, name, op=rr.Sum),
    "in place": lambda x, name, root: rr.reduce_(x.clone(), root, name, op=rr.Sum),
    "long": lambda x, name, root: waited(rr.reduce_async(x, root, name, op=rr.Sum)),
}
GATHERED: dict[str, Call] = {
    "new": lambda x, name, root: rr.allgather(x, name),
    "long": lambda x, name, root: waited(rr.allgather_async(x, name)),
}
SHARES: dict[str, Call] = {
    "new": lambda x, name, root: rr.reducescatter(x, name, op=rr.Sum),
    "long": lambda x, name, root: waited(rr.reducescatter_async(x, name, op=rr.Sum)),
}
EXCHANGED: dict[str, Call] = {
    "new": lambda x, name, root: rr.alltoall(x, None, name),
    "long": lambda x, name, root: waited(rr.alltoall_async(x, None, name))[0],
}


def all_ways(calls: dict[str, Call], mine: torch.Tensor, root: int, expected: torch.Tensor | None, what: str) -> None:
    """`expected`: None where this rank's result means nothing."""
    before = mine.clone()
    for way, call in calls.items():
        for name in (None, f"{what} {way}", "again"):
            result = call(mine, name, root)
            if expected is not None:
                assert_same(result, expected, f"{what}, {way}, name {name}")
            assert torch.equal(mine, before), f"{what}, {way}: the input was written to"


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_as_large_as_the_input(rank, size, dtype):
    for elements in sizes(dtype, size):
        mine = make(rank, elements, dtype)
        total = reduced(range(size), elements, dtype, rr.Sum)
        all_ways(REDUCED, mine, 0, total, f"allreduce of {elements}")
        for root in {0, size - 1}:
            all_ways(FROM_ROOT, mine, root, make(root, elements, dtype), f"broadcast of {elements} from {root}")
            here = total if rank == root else None
            all_ways(TO_ROOT, mine, root, here, f"reduce of {elements} to {root}")


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", DTYPES, ids=short)
def test_parts(rank, size, dtype):
    for elements in sizes(dtype, size):
        mine = make(rank, elements, dtype)
        all_ways(
            GATHERED, mine, 0, torch.cat([make(r, elements, dtype) for r in range(size)]), f"allgather of {elements}"
        )
        share, more = divmod(elements, size)
        shares = [share + (r < more) for r in range(size)]
        total = reduced(range(size), elements, dtype, rr.Sum)
        all_ways(SHARES, mine, 0, total.split(shares)[rank], f"reducescatter of {elements}")
        if elements % size == 0:
            parts = [make(r, elements, dtype).split(share or 1)[rank if share else 0] for r in range(size)]
            all_ways(EXCHANGED, mine, 0, torch.cat(parts), f"alltoall of {elements}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bfloat16], ids=short)
def test_all_operations(rank, size, dtype):
    for op in ops_for(dtype):
        mine = make(rank, 3 * size, dtype, op)
        total = reduced(range(size), 3 * size, dtype, op)
        ulps = 1 if op == rr.Average else 0
        assert_same(rr.allreduce(mine, op=op), total, f"{op}", ulps=ulps)
        assert_same(rr.allreduce_(mine.clone(), "named", op=op), total, f"{op}, named", ulps=ulps)
        assert_same(rr.reducescatter(mine, op=op), total.split(3)[rank], f"{op}, reducescatter", ulps=ulps)
        if rank == 0:
            assert_same(rr.reduce(mine, 0, op=op), total, f"{op}, reduce", ulps=ulps)
        else:
            assert not rr.reduce(mine, 0, op=op).any()


@pytest.mark.hosts
@pytest.mark.parametrize("elements", [0, 1, SMALL // 4 - 1, SMALL // 4, SMALL // 4 + 1, 3 * SMALL])
def test_one_rank_has_more(rank, size, elements):
    """What is little on some ranks only; and on some ranks nothing."""
    counts = [elements if r == size - 1 else r for r in range(size)]
    mine = make(rank, counts[rank], torch.float32)
    everything = torch.cat([make(r, counts[r], torch.float32) for r in range(size)])
    all_ways(GATHERED, mine, 0, everything, f"allgather of {counts}")
    assert_same(rr.gather(mine, size - 1), everything if rank == size - 1 else everything[:0], f"gather of {counts}")
    splits = counts if rank == 0 else [0] * size
    whole = make(0, sum(counts), torch.float32)
    result = rr.scatter(whole if rank == 0 else whole[:0], 0, counts if rank == 0 else None)
    assert_same(result, whole.split(counts)[rank], f"scatter of {counts}")
    rows, received = rr.alltoall(whole if rank == 0 else whole[:0], splits)
    assert_same(rows, whole.split(counts)[rank], f"alltoall of {counts}")
    assert received.tolist() == [counts[rank]] + [0] * (size - 1)
    several = rr.alltoall(whole.repeat(2), [2 * count for count in counts])
    assert several[1].tolist() == [2 * counts[rank]] * size


def test_rows_of_several_dimensions(rank, size):
    mine = make(rank, (2 * size, 3, 5), torch.float64)
    others = [make(r, (2 * size, 3, 5), torch.float64) for r in range(size)]
    assert_same(rr.allgather(mine), torch.cat(others), "allgather")
    assert_same(rr.alltoall(mine), torch.cat([one[2 * rank : 2 * rank + 2] for one in others]), "alltoall")
    assert_same(rr.reducescatter(mine, op=rr.Sum), sum(others)[2 * rank : 2 * rank + 2], "reducescatter")
    assert rr.allgather(torch.zeros(3, 0)).shape == (3 * size, 0)


def test_beside_others_in_flight(rank, size):
    """The short way is left while anything else of this rank is under way, and taken again."""
    for start in range(5):
        handles = [
            rr.allreduce_async(make(rank, 2_000 * i + 1, torch.float32), f"slow {i}", op=rr.Sum) for i in range(4)
        ]
        mine = make(rank, start + 1, torch.float32)
        assert_same(
            rr.allreduce(mine, "quick", op=rr.Sum), reduced(range(size), start + 1, torch.float32, rr.Sum), "quick"
        )
        assert_same(rr.broadcast(mine, 0), make(0, start + 1, torch.float32), "unnamed")
        rr.barrier()
        for i, handle in enumerate(handles):
            assert_same(rr.synchronize(handle), reduced(range(size), 2_000 * i + 1, torch.float32, rr.Sum), f"slow {i}")


def test_a_name_in_flight_is_refused(rank, size):
    handle = rr.allreduce_async(torch.ones(2), "taken")
    with pytest.raises(ValueError, match="'taken' is in flight"):
        rr.allreduce_(torch.ones(2), "taken")
    assert rr.allreduce(torch.ones(2), "free").tolist() == [1, 1]
    rr.synchronize(handle)
    assert rr.allreduce_(torch.ones(2), "taken").tolist() == [1, 1]


def test_short_and_long_meet(rank, size):
    """The same operation the short way on some ranks and the long way on others."""
    for elements in (size, SMALL // 4 // size * size, 2 * SMALL // size * size):
        mine = make(rank, elements, torch.float32)
        for odd in {0, size - 1}:
            way = "long" if rank == odd else "new"
            total = reduced(range(size), elements, torch.float32, rr.Sum)
            for name in (None, "mixed"):
                assert_same(REDUCED[way](mine, name, 0), total, "allreduce")
                assert_same(FROM_ROOT[way](mine, name, odd), make(odd, elements, torch.float32), "broadcast")
                assert_same(
                    GATHERED[way](mine, name, 0),
                    torch.cat([make(r, elements, torch.float32) for r in range(size)]),
                    "allgather",
                )
                assert_same(SHARES[way](mine, name, 0), total.chunk(size)[rank], "reducescatter")
                parts = torch.cat([make(r, elements, torch.float32).chunk(size)[rank] for r in range(size)])
                assert_same(EXCHANGED[way](mine, name, 0), parts, "alltoall")


def test_what_cannot_be_short_is_explained(rank, size):
    x = torch.ones(2)
    with pytest.raises(ValueError, match="root_rank"):
        rr.broadcast(x, size)
    with pytest.raises(ValueError, match="in-place"):
        rr.broadcast_(torch.ones(2, requires_grad=True), 0)
    with pytest.raises(ValueError, match="tensor"):
        rr.allgather(torch.tensor(1.0))
    with pytest.raises(TypeError, match="name"):
        rr.broadcast_(x, 0, name=3)
    with pytest.raises(ValueError, match="Unicode"):
        rr.allreduce(x, name="\ud800")
    with pytest.raises((TypeError, ValueError), match="op"):
        rr.reduce(x, 0, op=17)
    if size > 1:
        with pytest.raises(ValueError, match=r"splits|divide|rows"):
            rr.alltoall(torch.ones(size + 1))
    assert x.tolist() == [1, 1]


def test_versions_and_strides(rank, size):
    tensor = torch.zeros(4, 4)
    before = tensor._version
    rr.broadcast_(tensor, 0, "counted")
    assert tensor._version > before
    before = tensor._version
    rr.reduce_(tensor, size - 1, "counted, too")
    assert (tensor._version > before) == (rank == size - 1)
    columns = make(rank, (4, 3), torch.float32).t()
    assert_same(rr.broadcast(columns, 0), make(0, (4, 3), torch.float32).t(), "transposed")
    inside = make(rank, (4, 3), torch.float32)
    rr.allreduce_(inside[:, 1], "column", op=rr.Sum)
    assert_same(inside[:, 1], reduced(range(size), (4, 3), torch.float32, rr.Sum)[:, 1], "a column, in place")
    assert_same(inside[:, 0], make(rank, (4, 3), torch.float32)[:, 0], "beside it")


@pytest.mark.parametrize("kib", [96, 1024])
def test_large_ones_on_both_ways(rank, size, kib):
    """As often as it takes to try both staging and reading, and some more; the input is used again at once."""
    elements = kib * 256 // size * size
    calls = [REDUCED["new"], REDUCED["in place"], FROM_ROOT["new"], FROM_ROOT["in place"], GATHERED["new"],
             SHARES["new"], EXCHANGED["new"]]  # fmt: skip
    kept = []
    for turn in range(10):
        mine, others = make(rank + turn, elements, torch.float32), range(turn, size + turn)
        total, root = reduced(others, elements, torch.float32, rr.Sum), turn % size
        sent = make(root + turn, elements, torch.float32)
        gathered = torch.cat([make(r, elements, torch.float32) for r in others])
        exchanged = torch.cat([make(r, elements, torch.float32).chunk(size)[rank] for r in others])
        right = [total, total, sent, sent, gathered, total.chunk(size)[rank], exchanged]
        for call, expected in zip(calls, right, strict=True):
            tensor = mine.clone()
            result = call(tensor, "large", root)
            tensor.fill_(-1)  # nobody reads it any more
            assert_same(result, expected, f"turn {turn}")
            kept.append((result, expected))
    for result, expected in kept:
        assert_same(result, expected, "later")


def test_large_rows_are_ordinary_tensors(rank, size):
    rows = 30_000 + 1_000 * rank  # not as many on all ranks
    result = rr.allgather(make(rank, (rows, 2, 3), torch.float64), "uneven")
    expected = torch.cat([make(r, (30_000 + 1_000 * r, 2, 3), torch.float64) for r in range(size)])
    assert_same(result, expected, "allgather")
    assert result.is_contiguous()
    assert not result.requires_grad
    result.requires_grad_().mul(2).sum().backward()
    assert result.grad is not None
    assert bool((result.grad == 2).all())
    with torch.no_grad():
        result.zero_()
    again = rr.allgather(make(rank, (rows, 2, 3), torch.float64), "uneven")
    assert_same(again, expected, "while the first one lives")
    assert not result.any()
    few = rr.reducescatter(torch.ones(1, 50_000), op=rr.Sum)  # rows for the first rank only
    assert few.shape == (int(rank == 0), 50_000)
    assert bool((few == size).all())
