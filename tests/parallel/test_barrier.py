"""barrier: nobody leaves before everybody has come."""

from __future__ import annotations

import time

import pytest
import torch
from oracle import WORLD

import ringreduce as rr


def assert_held_everybody(enter: float, leave: float) -> None:
    """CLOCK_MONOTONIC is one clock for the whole machine, so the times can be compared."""
    enters, leaves = zip(*WORLD.allgather((enter, leave)), strict=True)
    assert max(enters) <= min(leaves), f"a rank left {max(enters) - min(leaves):.6f} s before another had come"


@pytest.mark.smoke
def test_waits_for_the_last(rank, size):
    for late in range(min(size, 4)):
        if rank == late:
            time.sleep(0.02)
        enter = time.monotonic()
        rr.barrier()
        assert_held_everybody(enter, time.monotonic())


def test_many(rank):
    for _ in range(300):
        rr.barrier()


def test_pending_operations_do_not_hold_it_up(rank, size):
    early = rank % 2 == 0
    mine = torch.tensor([float(rank)])
    handle = rr.allreduce_async(mine, name="around a barrier", op=rr.Sum) if early else None
    rr.barrier()
    handle = handle if handle is not None else rr.allreduce_async(mine, name="around a barrier", op=rr.Sum)
    assert rr.synchronize(handle).item() == size * (size - 1) // 2
