"""Random schedules: 2,000 operations that each rank submits in an order of its own.

All ranks draw the same operations from a seed: kind, dtype, size, process set, root. They are
submitted in windows; within a window each rank shuffles its own, and shuffles again before it
synchronizes, so that at any time the ranks are at different operations of overlapping sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
import torch
from oracle import NUMBERS, assert_same, make, reduced, short

import ringreduce as rr

OPERATIONS = 2_000
WINDOW = 80
KINDS = ("allreduce", "allreduce_", "grouped", "allgather", "broadcast", "broadcast_", "reducescatter", "alltoall")


@dataclass
class Operation:
    name: str
    kind: str
    process_set: rr.ProcessSet
    dtype: torch.dtype
    numel: int
    root: int

    def rows(self, rank: int) -> int:
        """What this rank gives to an allgather."""
        return (self.numel + 3 * rank) % 17

    def splits(self, source: int) -> list[int]:
        """What this rank sends to each member in an alltoall."""
        return [(self.numel + 2 * source + target) % 5 for target in self.process_set.ranks]

    def submit(self, rank: int) -> Any:
        target = {"name": self.name, "process_set": self.process_set}
        mine = make(rank, self.numel, self.dtype)
        if self.kind == "allreduce":
            return rr.allreduce_async(mine, op=rr.Sum, **target)
        if self.kind == "allreduce_":
            return rr.allreduce_async_(mine, op=rr.Max if not self.dtype.is_complex else rr.Sum, **target)
        if self.kind == "grouped":
            return rr.grouped_allreduce_async([mine, make(rank, 3, self.dtype)], op=rr.Sum, **target)
        if self.kind == "allgather":
            return rr.allgather_async(make(rank, (self.rows(rank), 2), self.dtype), **target)
        if self.kind == "broadcast":
            return rr.broadcast_async(mine, self.root, **target)
        if self.kind == "broadcast_":
            return rr.broadcast_async_(mine, self.root, **target)
        if self.kind == "reducescatter":
            return rr.reducescatter_async(mine, op=rr.Sum, **target)
        splits = self.splits(rank)
        return rr.alltoall_async(make(rank, sum(splits), self.dtype), splits, **target)

    def check(self, rank: int, result: Any) -> None:
        for got, expected in zip(*self.compared(rank, result), strict=True):
            assert_same(got, expected, f"{self.name}: {self.kind} of {self.numel} {short(self.dtype)}")

    def compared(self, rank: int, result: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The tensors to compare: what came out, and what should have."""
        members = self.process_set.ranks
        total = reduced(members, self.numel, self.dtype, rr.Sum)
        if self.kind == "allreduce":
            return [result], [total]
        if self.kind == "allreduce_":
            largest = total if self.dtype.is_complex else reduced(members, self.numel, self.dtype, rr.Max)
            return [result], [largest]
        if self.kind == "grouped":
            return result, [total, reduced(members, 3, self.dtype, rr.Sum)]
        if self.kind == "allgather":
            return [result], [torch.cat([make(r, (self.rows(r), 2), self.dtype) for r in members])]
        if self.kind in ("broadcast", "broadcast_"):
            return [result], [make(self.root, self.numel, self.dtype)]
        me = members.index(rank)
        if self.kind == "reducescatter":
            return [result], [total.tensor_split(len(members))[me]]
        splits = {r: self.splits(r) for r in members}
        sent = [make(r, sum(splits[r]), self.dtype).split(splits[r])[me] for r in members]
        counts = torch.tensor([splits[r][me] for r in members], dtype=torch.int32)
        return list(result), [torch.cat(sent), counts]


@contextmanager
def overlapping_sets(size: int) -> Iterator[list[rr.ProcessSet]]:
    """The world, each rank alone, all pairs (neighbours where there are many), the even ranks."""
    pairs = itertools.combinations(range(size), 2) if size <= 4 else zip(range(size - 1), range(1, size), strict=True)
    wanted = [(rank,) for rank in range(size)] + list(pairs) + [tuple(range(0, size, 2))]
    different = dict.fromkeys(ranks for ranks in wanted if ranks != tuple(range(size)))
    added = [rr.add_process_set(list(ranks)) for ranks in different]
    try:
        yield [rr.global_process_set, *added]
    finally:
        for process_set in added:
            rr.remove_process_set(process_set)


def draw(random: Random, count: int, sets: list[rr.ProcessSet]) -> list[Operation]:
    numels: list[Callable[[], int]] = [
        lambda: random.randrange(4),
        lambda: random.randrange(1, 300),
        lambda: random.randrange(1, 300),
        lambda: random.choice((5_003, 10_007, 70_001)),
    ]
    operations = []
    for index in range(count):
        process_set = random.choice(sets)
        operations.append(
            Operation(
                name=f"op {index}",
                kind=random.choice(KINDS),
                process_set=process_set,
                dtype=random.choice(NUMBERS),
                numel=random.choice(numels)(),
                root=random.choice(process_set.ranks),
            )
        )
    return operations


def run(operations: list[Operation], rank: int, seed: int) -> None:
    own_order = Random(1_000 * seed + rank)
    for begin in range(0, len(operations), WINDOW):
        window = [op for op in operations[begin : begin + WINDOW] if rank in op.process_set.ranks]
        own_order.shuffle(window)
        handles = [(op, op.submit(rank)) for op in window]
        own_order.shuffle(handles)
        for op, handle in handles:
            op.check(rank, rr.synchronize(handle))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_random_schedule(rank, size, seed):
    with overlapping_sets(size) as sets:
        run(draw(Random(seed), OPERATIONS // 2, sets), rank, seed)


@pytest.mark.smoke
def test_short_random_schedule(rank, size):
    with overlapping_sets(size) as sets:
        run(draw(Random(3), 2 * WINDOW, sets), rank, seed=3)
