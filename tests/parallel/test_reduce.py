"""reduce: what allreduce gives, on the root only."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same, average_ulps, every_dtype, make, ops_for, reduced, short, sizes

import ringreduce as rr


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_every_operation_and_size(rank, size, dtype):
    for op in ops_for(dtype):
        for numel in sizes(dtype, size):
            root = numel % size
            mine = make(rank, numel, dtype, op)
            result = rr.reduce(mine, root, op=op)
            expected = reduced(range(size), numel, dtype, op) if rank == root else torch.zeros(numel, dtype=dtype)
            assert_same(result, expected, f"{op} of {numel}", ulps=average_ulps(size) if op == rr.Average else 0)
            assert torch.equal(mine, make(rank, numel, dtype, op))


@pytest.mark.hosts
@pytest.mark.smoke
@pytest.mark.parametrize("numel", [5, 300_000])
def test_in_place_writes_on_the_root_only(rank, size, numel):
    for root in {0, size - 1}:
        mine = make(rank, numel, torch.float32)
        assert rr.reduce_(mine, root, op=rr.Sum) is mine
        own = make(rank, numel, torch.float32)
        assert_same(mine, reduced(range(size), numel, torch.float32, rr.Sum) if rank == root else own, f"root {root}")


def test_the_bits_of_allreduce(rank, size):
    mine = torch.rand(70_001, generator=torch.Generator().manual_seed(rank))
    everywhere = rr.allreduce(mine, op=rr.Sum)
    here = rr.reduce(mine, size - 1, op=rr.Sum)
    assert rank != size - 1 or torch.equal(here, everywhere)


def test_scaled_not_contiguous_and_asynchronous(rank, size):
    mine = make(rank, (6, 5), torch.float64).t()
    first = rr.reduce_async(mine, 0, "first", op=rr.Sum, prescale_factor=0.5, postscale_factor=4.0)
    target = mine.clone().t()
    second = rr.reduce_async_(target, size - 1, "second", op=rr.Sum)
    expected = sum(make(other, (6, 5), torch.float64).t() for other in range(size))
    assert rr.synchronize(second) is target
    assert_same(rr.synchronize(first), 2 * expected if rank == 0 else torch.zeros(5, 6).double(), "scaled")
    assert_same(target, (expected if rank == size - 1 else mine).t(), "in place")


def test_process_sets(rank, size):
    if size == 1:
        return
    ranks = sorted({1, size - 1})
    members = rr.add_process_set(ranks)
    if members.included():
        result = rr.reduce(torch.tensor([rank + 1.0]), size - 1, op=rr.Sum, process_set=members)
        assert result.tolist() == [float(sum(ranks) + len(ranks)) if rank == size - 1 else 0.0]
    rr.remove_process_set(members)


def test_derivatives(rank, size):
    for op, each in ((rr.Sum, 1.0), (rr.Average, 1.0 / size)):
        x = torch.full((4,), rank + 1.0, dtype=torch.float64, requires_grad=True)
        weights = torch.arange(4.0, dtype=torch.float64)
        (rr.reduce(x, size - 1, op=op, postscale_factor=3.0) * weights).sum().backward()
        torch.testing.assert_close(x.grad, 3 * each * weights)
    with pytest.raises(ValueError, match="Average and Sum"):
        rr.reduce(x, 0, op=rr.Max)


def test_errors(size):
    with pytest.raises(ValueError, match="root_rank"):
        rr.reduce(torch.ones(2), size)
    with pytest.raises(ValueError, match="requires grad"):
        rr.reduce_(torch.ones(2, requires_grad=True), 0)
    with pytest.raises(ValueError, match="bool has no meaning; allowed: Sum, Min, Max, Product"):
        rr.reduce(torch.ones(2, dtype=torch.bool), 0)
