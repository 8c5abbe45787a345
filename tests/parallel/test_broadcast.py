"""broadcast: every root, dtype and size; the source is left alone."""

from __future__ import annotations

import pytest
import torch
from oracle import Digest, assert_same, every_dtype, make, several_chunks, short, sizes

import ringreduce as rr


@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_exact(rank, size, dtype):
    digest = Digest()
    for numel in sizes(dtype, size):
        for root in {0, size - 1}:
            mine = make(rank, numel, dtype)
            before = mine.clone()
            result = rr.broadcast(mine, root_rank=root)
            digest.add(result)
            assert_same(result, make(root, numel, dtype), f"{numel} {short(dtype)} from {root}")
            assert torch.equal(mine, before), "the input was changed"
    digest.assert_same_everywhere()


@pytest.mark.smoke
def test_every_root(rank, size):
    for root in range(size):
        for numel in (1, 1_009):
            assert_same(
                rr.broadcast(make(rank, numel, torch.float32), root), make(root, numel, torch.float32), f"root {root}"
            )


@pytest.mark.hosts
def test_every_root_in_place(rank, size):
    for root in range(size):
        tensor = make(rank, several_chunks(torch.float32), torch.float32)
        assert rr.broadcast_(tensor, root) is tensor
        assert_same(tensor, make(root, tensor.numel(), torch.float32), f"root {root}, several chunks")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5, 7, 3)], ids=str)
def test_shapes(rank, size, shape):
    root = size // 2
    for dtype in (torch.float32, torch.bool, torch.int16):
        assert_same(rr.broadcast(make(rank, shape, dtype), root), make(root, shape, dtype), str(shape))
        assert_same(rr.broadcast_(make(rank, shape, dtype), root), make(root, shape, dtype), f"{shape} in place")


def test_not_contiguous(rank, size):
    root = size - 1
    source = make(root, (6, 8), torch.float64)
    assert_same(rr.broadcast(make(rank, (6, 8), torch.float64).t(), root), source.t(), "transposed")

    base = make(rank, (6, 8), torch.float64)
    column = base[:, 2]
    assert rr.broadcast_(column, root) is column
    expected = make(rank, (6, 8), torch.float64)
    expected[:, 2] = source[:, 2]
    assert_same(base, expected, "a column in place, and what lies around it")


def test_bits_survive(rank):
    """NaN payloads and negative zeros arrive as they were sent."""
    bits = torch.tensor([0x7FC01234, -0x80000000, 0x7F800001, 1], dtype=torch.int32)
    mine = bits.view(torch.float32) if rank == 0 else torch.zeros(4)
    assert rr.broadcast(mine, 0).view(torch.int32).tolist() == bits.tolist()


def test_asynchronous(rank, size):
    names = [f"broadcast {k}" for k in range(6)]
    inputs = [make(rank, 100 + k, torch.int32) for k in range(6)]
    handles = [rr.broadcast_async(t, k % size, name=n) for k, (t, n) in enumerate(zip(inputs, names, strict=True))]
    in_place = make(rank, 50, torch.int32)
    last = rr.broadcast_async_(in_place, 0, name="in place")
    for k, handle in enumerate(handles):
        assert_same(rr.synchronize(handle), make(k % size, 100 + k, torch.int32), names[k])
    assert rr.synchronize(last) is in_place
    assert_same(in_place, make(0, 50, torch.int32), "in place")
