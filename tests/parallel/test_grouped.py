"""grouped_allreduce: several tensors as one operation."""

from __future__ import annotations

import pytest
import torch
from oracle import Digest, assert_same, average_ulps, every_dtype, make, reduced, several_chunks, short

import ringreduce as rr

SHAPES = [(3,), (), (0,), (2, 5), (10_007,), (1,), (4, 0)]


@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_exact(rank, size, dtype):
    digest = Digest()
    inputs = [make(rank + 16 * k, shape, dtype) for k, shape in enumerate(SHAPES)]
    results = rr.grouped_allreduce(inputs, op=rr.Sum)
    assert len(results) == len(SHAPES)
    for k, (result, shape) in enumerate(zip(results, SHAPES, strict=True)):
        expected = reduced([other + 16 * k for other in range(size)], shape, dtype, rr.Sum)
        assert_same(result, expected, f"{k}: {shape}")
        assert torch.equal(inputs[k], make(rank + 16 * k, shape, dtype)), "the input was changed"
    digest.add(*results)
    digest.assert_same_everywhere()


@pytest.mark.smoke
def test_average_is_the_default(rank, size):
    results = rr.grouped_allreduce([make(rank, shape, torch.float32) for shape in SHAPES])
    for result, shape in zip(results, SHAPES, strict=True):
        expected = reduced(range(size), shape, torch.float32, rr.Average)
        assert_same(result, expected, str(shape), ulps=average_ulps(size))


@pytest.mark.hosts
def test_in_place(rank, size):
    base = make(rank, (40, 30), torch.float32)
    tensors = [make(rank, 5, torch.float32), base[:, 1], make(rank, several_chunks(torch.float32), torch.float32)]
    shapes = [tensor.shape for tensor in tensors]
    results = rr.grouped_allreduce_(tensors, op=rr.Sum)
    assert all(result is tensor for result, tensor in zip(results, tensors, strict=True))
    assert_same(tensors[0], reduced(range(size), shapes[0], torch.float32, rr.Sum), "first")
    total = reduced(range(size), (40, 30), torch.float32, rr.Sum)
    assert_same(base[:, 1], total[:, 1], "a column")
    assert_same(base[:, 2], make(rank, (40, 30), torch.float32)[:, 2], "the column beside it")
    assert_same(tensors[2], reduced(range(size), shapes[2], torch.float32, rr.Sum), "several chunks")


def test_scale_factors(rank, size):
    inputs = [make(rank, shape, torch.int32) for shape in SHAPES]
    results = rr.grouped_allreduce(inputs, op=rr.Sum, prescale_factor=0.5, postscale_factor=2.0)
    for result, shape in zip(results, SHAPES, strict=True):
        assert_same(result, reduced(range(size), shape, torch.int32, rr.Sum, 0.5, 2.0), str(shape))


def test_several_dtypes_in_one_group(rank, size):
    dtypes = [torch.float32, torch.int64, torch.float32, torch.bfloat16]
    results = rr.grouped_allreduce([make(rank, 100 + k, dtype) for k, dtype in enumerate(dtypes)], op=rr.Max)
    for k, (result, dtype) in enumerate(zip(results, dtypes, strict=True)):
        assert_same(result, reduced(range(size), 100 + k, dtype, rr.Max), f"{k}: {short(dtype)}")


def test_many_small_tensors_and_none(rank, size):
    results = rr.grouped_allreduce([torch.tensor([rank + k]) for k in range(300)], op=rr.Sum)
    ranks = size * (size - 1) // 2
    assert [result.item() for result in results] == [ranks + k * size for k in range(300)]
    assert list(rr.grouped_allreduce([], op=rr.Sum)) == []


def test_asynchronous(rank, size):
    shapes = [(7,), (2, 3)]
    first = rr.grouped_allreduce_async([make(rank, shape, torch.float32) for shape in shapes], name="first", op=rr.Sum)
    tensors = [make(rank, shape, torch.int16) for shape in shapes]
    second = rr.grouped_allreduce_async_(tensors, name="second", op=rr.Sum)
    assert all(result is tensor for result, tensor in zip(rr.synchronize(second), tensors, strict=True))
    for shape, result, tensor in zip(shapes, rr.synchronize(first), tensors, strict=True):
        assert_same(result, reduced(range(size), shape, torch.float32, rr.Sum), f"first {shape}")
        assert_same(tensor, reduced(range(size), shape, torch.int16, rr.Sum), f"second {shape}")
