"""allreduce: exact results for every dtype, operation and size, and the same bits everywhere."""

from __future__ import annotations

import time

import pytest
import torch
from oracle import (
    COMPLEX,
    FLOATS,
    HALVES,
    INTEGERS,
    OP_NAMES,
    WORLD,
    Digest,
    assert_same,
    average_ulps,
    every_dtype,
    make,
    ops_for,
    reduced,
    short,
    sizes,
)

import ringreduce as rr


@pytest.mark.hosts
@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_exact(rank, size, dtype):
    digest = Digest()
    for op in ops_for(dtype):
        for numel in sizes(dtype, size):
            mine = make(rank, numel, dtype, op)
            before = mine.clone()
            result = rr.allreduce(mine, op=op)
            digest.add(result)
            what = f"{OP_NAMES[op]} of {numel} {short(dtype)}"
            ulps = average_ulps(size) if op == rr.Average else 0
            assert_same(result, reduced(range(size), numel, dtype, op), what, ulps=ulps)
            assert torch.equal(mine, before), f"{what} changed its input"
    digest.assert_same_everywhere()


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=short)
def test_sum_and_average(rank, size, dtype):
    for op in (rr.Sum, rr.Average):
        for numel in (1, 10_007):
            result = rr.allreduce(make(rank, numel, dtype), op=op)
            assert_same(result, reduced(range(size), numel, dtype, op), OP_NAMES[op], ulps=average_ulps(size))


def test_average_is_the_default(rank, size):
    result = rr.allreduce(torch.tensor([rank + 1.0]))
    assert_same(result, torch.tensor([(size + 1) / 2]), "default operation", ulps=average_ulps(size))


@pytest.mark.parametrize("dtype", every_dtype(), ids=short)
def test_in_place(rank, size, dtype):
    for numel in sizes(dtype, size):
        tensor = make(rank, numel, dtype)
        address = tensor.data_ptr()
        assert rr.allreduce_(tensor, op=rr.Sum) is tensor
        assert tensor.data_ptr() == address
        assert_same(tensor, reduced(range(size), numel, dtype, rr.Sum), f"{numel} {short(dtype)} in place")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (5, 7, 3)], ids=str)
def test_shapes(rank, size, shape):
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        expected = reduced(range(size), shape, dtype, rr.Sum)
        assert_same(rr.allreduce(make(rank, shape, dtype), op=rr.Sum), expected, f"shape {shape}")
        assert_same(rr.allreduce_(make(rank, shape, dtype), op=rr.Sum), expected, f"shape {shape} in place")


def views(base: torch.Tensor) -> dict[str, torch.Tensor]:
    """Tensors over [40, 60] that are not contiguous, or begin in the middle of a storage."""
    return {
        "transposed": base.t(),
        "every second column": base[:, ::2],
        "a column": base[:, 3],
        "inner rows": base[7:31],
        "permuted": base.reshape(8, 5, 60).permute(2, 0, 1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.complex64, torch.bool], ids=short)
def test_not_contiguous(rank, size, dtype):
    base = make(rank, (40, 60), dtype)
    total = reduced(range(size), (40, 60), dtype, rr.Sum)
    for (what, view), expected in zip(views(base).items(), views(total).values(), strict=True):
        assert_same(rr.allreduce(view, op=rr.Sum), expected, what)
    assert_same(base, make(rank, (40, 60), dtype), "input")

    for what in views(base):
        base = make(rank, (40, 60), dtype)
        view = views(base)[what]
        assert rr.allreduce_(view, op=rr.Sum) is view
        expected = make(rank, (40, 60), dtype)
        views(expected)[what].copy_(views(total)[what])
        assert_same(base, expected, f"{what} in place, and what lies around it")


def test_lazily_negated_and_conjugated(rank, size):
    """Memory does not hold what such a tensor says: the result must, in place as well."""
    for numel in (1, 7):
        numbers = torch.full((numel,), rank + 1.0)
        expected = torch.full((numel,), -size * (size + 1) / 2)
        for tensor in (torch._neg_view(numbers), torch.complex(numbers, numbers).conj().imag):
            assert tensor.is_neg()
            assert rr.allreduce_(tensor, op=rr.Sum) is tensor
            assert_same(tensor, expected, f"{numel} numbers")


@pytest.mark.parametrize("numel", [1, 1024, 1025], ids=str)  # 1024: the most that travels inline
def test_forms_of_a_call_meet(rank, size, numel):
    """In place and not, waited for and not, early and late: unnamed calls match by their order."""
    expected = reduced(range(size), numel, torch.float32, rr.Sum)
    for turn in range(8):
        tensor = make(rank, numel, torch.float32)
        if (turn + rank) % 4 == 0:
            time.sleep(0.02)  # longer than the others linger
        if (turn + rank) % 3 == 0:
            result = rr.synchronize(rr.allreduce_async_(tensor, op=rr.Sum))
        elif (turn + rank) % 3 == 1:
            result = rr.allreduce(tensor, op=rr.Sum)
        else:
            result = rr.allreduce_(tensor, op=rr.Sum)
        assert_same(result, expected, f"turn {turn}")


def test_in_place_while_others_are_in_flight(rank, size):
    expected = reduced(range(size), 5, torch.float32, rr.Sum)
    handles = [rr.allreduce_async(make(rank, 5, torch.float32), name=f"early {i}", op=rr.Sum) for i in range(3)]
    assert_same(rr.allreduce_(make(rank, 5, torch.float32), op=rr.Sum), expected, "in place")
    for handle in reversed(handles):
        assert_same(rr.synchronize(handle), expected, "in flight before")


@pytest.mark.parametrize("dtype", every_dtype([*INTEGERS, *FLOATS, *COMPLEX]), ids=short)
def test_scale_factors(rank, size, dtype):
    digest = Digest()
    for numel in (0, 1, 10_007):
        for op in (rr.Sum, rr.Product):
            for pre, post in ((0.5, 1.0), (1.0, 0.5), (0.5, 2.0), (2.0, 0.25)):
                if op == rr.Product and pre != 1.0:
                    continue  # 2^size: not exact in the short types
                result = rr.allreduce(make(rank, numel, dtype, op), op=op, prescale_factor=pre, postscale_factor=post)
                digest.add(result)
                expected = reduced(range(size), numel, dtype, op, pre, post)
                assert_same(result, expected, f"{OP_NAMES[op]} of {numel} {short(dtype)}, {pre} before, {post} after")
        if dtype in FLOATS:
            result = rr.allreduce(make(rank, numel, dtype), op=rr.Average, prescale_factor=0.5, postscale_factor=4.0)
            digest.add(result)
            expected = reduced(range(size), numel, dtype, rr.Average, 0.5, 4.0)
            assert_same(result, expected, "scaled average", ulps=average_ulps(size))
    digest.assert_same_everywhere()


@pytest.mark.parametrize("dtype", HALVES, ids=short)
def test_16_bit_floats_accumulate_in_float32(rank, size, dtype):
    if rr.local_size() < rr.size():
        pytest.skip("partial sums of the hosts are rounded to 16 bits")
    # Half an ulp of `large` is 1: added one at a time in 16 bits, no 1 would count.
    large = 2.0 / torch.finfo(dtype).eps
    ones = size - 1 - (size - 1) % 2  # an even number, so the sum has a 16-bit form
    mine = large if rank == 0 else 1.0 if rank <= ones else 0.0
    for numel in (1, 37, 10_007):
        result = rr.allreduce(torch.full((numel,), mine, dtype=dtype), op=rr.Sum)
        assert_same(result, torch.full((numel,), large + ones, dtype=dtype), f"{size} ranks")


def test_float16_average_does_not_overflow_on_the_way(size):
    if rr.local_size() < rr.size():
        pytest.skip("partial sums of the hosts are rounded to 16 bits")
    mine = torch.full((10_007,), 60_000.0, dtype=torch.float16)
    assert_same(rr.allreduce(mine), mine, "average", ulps=average_ulps(size))
    assert_same(rr.allreduce(mine, op=rr.Sum, postscale_factor=0.5 / size), mine / 2, "scaled sum", ulps=2)


def random_inputs(size: int, dtype: torch.dtype, numel: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(numel)
    return [torch.randn(numel, generator=generator, dtype=torch.float64).to(dtype) for _ in range(size)]


@pytest.mark.parametrize("dtype", every_dtype([*FLOATS, torch.complex64]), ids=short)
def test_random_floats(rank, size, dtype):
    """Within the bound of any summation order, the same bits on all ranks and run after run."""
    digest = Digest()
    for numel in (1, 1_001, 500_009):
        inputs = random_inputs(size, dtype, numel)
        results = [rr.allreduce(inputs[rank], op=rr.Sum) for _ in range(3)]
        digest.add(*results)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        exact = sum(part.to(wide) for part in inputs)
        scale = sum(part.to(wide).abs() for part in inputs)
        bound = (size + 1) * torch.finfo(dtype).eps * scale
        assert bool(((results[0].to(wide) - exact).abs() <= bound).all())
        assert all(torch.equal(result, results[0]) for result in results)
    digest.assert_same_everywhere()


def test_nan_and_infinity_pass_through(rank, size):
    mine = torch.zeros(4)
    mine[rank % 2] = float("nan") if rank == 0 else 0.0
    mine[2] = float("inf")
    mine[3] = float("-inf") if rank == size - 1 else 0.0
    result = rr.allreduce(mine, op=rr.Sum)
    assert bool(result[0].isnan())
    assert result[1:].tolist() == [0.0, float("inf"), float("-inf")]
    for op in (rr.Min, rr.Max):
        assert bool(rr.allreduce(mine, op=op)[0].isnan()), f"{OP_NAMES[op]} lost a NaN"


def test_integers_wrap_as_torch_does(rank, size):
    for dtype in INTEGERS:
        largest = torch.iinfo(dtype).max
        result = rr.allreduce(torch.full((5,), largest, dtype=dtype), op=rr.Sum)
        expected = torch.zeros(5, dtype=dtype)
        for _ in range(size):
            expected += torch.full((5,), largest, dtype=dtype)
        assert_same(result, expected, f"sum of {size} times {largest}")
    wide = torch.tensor([2**53 + 1 + rank], dtype=torch.int64)  # lost by a detour over float64
    total = size * (2**53 + 1) + size * (size - 1) // 2
    assert rr.allreduce(wide, op=rr.Sum).item() == total


def test_compression(rank, size):
    mine = make(rank, 10_007, torch.float32)
    expected = reduced(range(size), 10_007, torch.float32, rr.Sum)
    for compression in (rr.Compression.none, rr.Compression.fp16, rr.Compression.bf16):
        assert_same(rr.allreduce(mine, op=rr.Sum, compression=compression), expected, str(compression))
    fine = 1.0 + 2**-20  # float16 has no such number; inside one host nothing is compressed
    result = rr.allreduce(torch.full((3,), fine), op=rr.Max, compression=rr.Compression.fp16)
    assert result.dtype == torch.float32
    assert result.tolist() == [fine if rr.local_size() == size else 1.0] * 3
    whole = torch.tensor([rank], dtype=torch.int64)
    total = rr.allreduce(whole, op=rr.Sum, compression=rr.Compression.fp16)
    assert_same(total, torch.tensor([size * (size - 1) // 2]), "integers are left alone")


def test_results_agree_with_mpi(rank, size):
    """Against another implementation, on data that is not made for it."""
    generator = torch.Generator().manual_seed(rank)
    mine = torch.randint(-(2**40), 2**40, (5_003,), generator=generator)
    assert rr.allreduce(mine, op=rr.Max).tolist() == [
        max(column) for column in zip(*WORLD.allgather(mine.tolist()), strict=True)
    ]
