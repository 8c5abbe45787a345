"""The CUDA kernels on a GPU, against torch. (tests/native/test_gpu_*.cc has their bodies on the host.)

Bits are compared, but for NaN: that it is NaN.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from ringreduce import ReduceOp, RingreduceError
from ringreduce._ops.dtypes import CODES

DEVICE = "cuda"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
COMPLEX = (torch.complex64, torch.complex128)
COUNTS = (0, 1, 2, 3, 7, 8, 9, 31, 33, 64, 127, 500, 512, 513, 1024, 2049, 100_003)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(7)


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def random(dtype: torch.dtype, count: int, shift: int = 0) -> torch.Tensor:
    """`count` elements, `shift` elements behind the beginning of their memory."""
    if dtype in WHOLE:
        least = 0 if dtype == torch.uint8 else -100
        whole = torch.randint(least, 100, (count + shift,), device=DEVICE, dtype=dtype)
        return whole[shift:]
    if dtype == torch.bool:
        return torch.randint(0, 2, (count + shift,), device=DEVICE).bool()[shift:]
    if dtype in COMPLEX:
        return torch.randn(count + shift, device=DEVICE, dtype=dtype)[shift:]
    values = torch.randn(count + shift, device=DEVICE, dtype=torch.float64).float()
    return values.to(dtype)[shift:]


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if got.is_complex():
        got, expected = torch.view_as_real(got), torch.view_as_real(expected)
    if got.dtype == torch.bool:
        got, expected = got.byte(), expected.byte()
    got, expected = got.cpu().contiguous(), expected.cpu().contiguous()
    bits = BITS[got.element_size()]
    wrong = (got.view(bits) != expected.view(bits)) & ~(got.isnan() & expected.isnan())
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()}: {got[wrong][:4]}, expected {expected[wrong][:4]}"


def converted(tensor: torch.Tensor, dtype: torch.dtype, scale: float) -> torch.Tensor:
    if tensor.dtype == dtype and scale == 1:
        return tensor
    wide = torch.float64 if torch.float64 in (tensor.dtype, dtype) else torch.float32
    return (tensor.to(wide) * scale).to(dtype)


class Layout:
    """Tensors and their places in a bucket."""

    def __init__(self, tensor_dtype, bucket_dtype, counts, aligned=True):
        self.tensors, self.offsets, end = [], [], 0
        for turn, count in enumerate(counts):
            end = -(-end // 64) * 64 if aligned else end + turn % 4
            self.tensors.append(random(tensor_dtype, count, 0 if aligned else turn * 5 % 16))
            self.offsets.append(end)
            end += count
        self.bucket = random(bucket_dtype, end, 0 if aligned else 3)

    def call(self, function, scale, on=None):
        dtypes = CODES[self.bucket.dtype], CODES[self.tensors[0].dtype]
        addresses, counts = [t.data_ptr() for t in self.tensors], [t.numel() for t in self.tensors]
        function(
            self.bucket.data_ptr(), *dtypes, addresses, self.offsets, counts, scale, stream() if on is None else on
        )

    def places(self):
        return [self.bucket[at : at + t.numel()] for at, t in zip(self.offsets, self.tensors, strict=True)]


def check_both_ways(gpu, tensor_dtype, bucket_dtype, scale, counts, aligned=True):
    layout = Layout(tensor_dtype, bucket_dtype, counts, aligned)
    expected = layout.bucket.clone()
    for at, tensor in zip(layout.offsets, layout.tensors, strict=True):
        expected[at : at + tensor.numel()] = converted(tensor, bucket_dtype, scale)
    layout.call(gpu.pack, scale)
    assert_same(layout.bucket, expected)
    layout.bucket.copy_(random(bucket_dtype, layout.bucket.numel()))
    wanted = [converted(place, tensor_dtype, scale) for place in layout.places()]
    layout.call(gpu.unpack, scale)
    assert_same(torch.cat(layout.tensors), torch.cat(wanted))


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "anywhere"])
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_pack_as_it_is(gpu, dtype, aligned):
    check_both_ways(gpu, dtype, dtype, 1.0, COUNTS, aligned)


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "anywhere"])
@pytest.mark.parametrize("scale", [1.0, 1 / 3, -2.5])
@pytest.mark.parametrize(("tensor", "bucket"), list(itertools.product(FLOATS, FLOATS)), ids=str)
def test_pack_converted_and_scaled(gpu, tensor, bucket, scale, aligned):
    if scale != 1 and torch.float64 in (tensor, bucket) and {tensor, bucket} & {torch.float16, torch.bfloat16}:
        scale = 0.25  # torch rounds float64 to 16 bits by way of float32: no bits to lose
    check_both_ways(gpu, tensor, bucket, scale, COUNTS, aligned)


@pytest.mark.parametrize("count", [200, 2000, 5000])
def test_pack_many(gpu, count):
    check_both_ways(gpu, torch.float32, torch.bfloat16, 0.5, [1024] * count)
    check_both_ways(gpu, torch.float32, torch.float32, 1.0, [1 + i * 37 % 300 for i in range(count)])
    check_both_ways(gpu, torch.float64, torch.float64, 3.0, [1 + i * 37 % 300 for i in range(count)], aligned=False)


def test_pack_every_16_bit_float(gpu):
    codes = torch.arange(0x10000, device=DEVICE).to(torch.int32).to(torch.int16)
    for source in (torch.float16, torch.bfloat16):
        for target in FLOATS:
            tensor, bucket = codes.view(source), torch.empty(0x10000, dtype=target, device=DEVICE)
            args = (CODES[target], CODES[source], [tensor.data_ptr()], [0], [0x10000], 1.0, stream())
            gpu.pack(bucket.data_ptr(), *args)
            assert_same(bucket, tensor.to(target))


def test_pack_rounds_once(gpu):
    """To the nearest, ties to even; not by way of float32, which would make ties of these."""
    cases = {
        torch.bfloat16: {
            1 + 2**-8 + 2**-40: 1 + 2**-7,
            1 + 2**-8: 1.0,
            1 + 3 * 2**-8 - 2**-40: 1 + 2**-7,
            1e300: torch.inf,
        },
        torch.float16: {
            1 + 2**-11 + 2**-40: 1 + 2**-10,
            1 + 2**-11: 1.0,
            2**-25 + 2**-60: 2**-24,
            -65520 + 2**-30: -65504.0,
        },
    }
    for dtype, pairs in cases.items():
        tensor = torch.tensor(list(pairs), dtype=torch.float64, device=DEVICE)
        bucket = torch.empty(len(pairs), dtype=dtype, device=DEVICE)
        args = (CODES[dtype], CODES[torch.float64], [tensor.data_ptr()], [0], [len(pairs)], 1.0, stream())
        gpu.pack(bucket.data_ptr(), *args)
        assert bucket.tolist() == list(pairs.values())


def test_pack_in_place(gpu):
    layout = Layout(torch.float32, torch.float32, [1000, 3, 2000])
    layout.tensors = layout.places()
    expected = layout.bucket.clone()
    layout.call(gpu.pack, 1.0)
    assert_same(layout.bucket, expected)
    for at, tensor in zip(layout.offsets, layout.tensors, strict=True):
        expected[at : at + tensor.numel()] *= 0.3
    layout.call(gpu.unpack, 0.3)
    assert_same(layout.bucket, expected)


def test_pack_more_than_a_launch_covers(gpu):
    """Over 2**31 elements."""
    count = 2**31 + 12345
    if torch.cuda.mem_get_info()[0] < 4 * count:
        pytest.skip("takes 8 GiB of free GPU memory")
    tensor = torch.empty(count, dtype=torch.uint8, device=DEVICE)
    tensor.view(-1)[: count // 8 * 8].view(torch.int64).copy_(torch.arange(count // 8, device=DEVICE))
    bucket = torch.zeros(count + 16, dtype=torch.uint8, device=DEVICE)
    gpu.pack(bucket.data_ptr(), 0, 0, [tensor.data_ptr()], [16], [count], 1.0, stream())
    assert torch.equal(bucket[16:], tensor)
    assert not bucket[:16].any()


def test_pack_is_captured(gpu):
    """In a CUDA graph: the addresses are kept, the values are those of the replay."""
    layout = Layout(torch.float32, torch.bfloat16, [5000] * 300)
    layout.call(gpu.pack, 1.0)  # what is loaded lazily is loaded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layout.call(gpu.pack, 0.5)
    for tensor in layout.tensors:
        tensor.normal_()
    graph.replay()
    for place, tensor in zip(layout.places(), layout.tensors, strict=True):
        assert_same(place, converted(tensor, torch.bfloat16, 0.5))


def test_pack_runs_on_its_stream(gpu):
    layout = Layout(torch.float32, torch.float32, [100_000] * 20)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for tensor in layout.tensors:
            tensor.fill_(3)
    layout.call(gpu.pack, 2.0, on=side.cuda_stream)
    side.synchronize()
    for place in layout.places():
        assert torch.all(place == 6)


# --- reduce --------------------------------------------------------------------------------------


def combine(op, a, b):
    if op in (ReduceOp.Min, ReduceOp.Max):
        return torch.minimum(a, b) if op == ReduceOp.Min else torch.maximum(a, b)
    if a.dtype == torch.bool:
        return a | b if op == ReduceOp.Sum else a & b
    if op == ReduceOp.Sum:
        return a + b
    if a.is_complex():  # the textbook's product; torch's own may be contracted
        return torch.complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)
    return a * b


def scaled(tensor, factor):
    if factor == 1 or tensor.dtype == torch.bool:
        return tensor
    if tensor.dtype in WHOLE:
        info = torch.iinfo(tensor.dtype)
        # The nearest that fits; of int64 torch itself converts what fits only.
        return (tensor.double() * factor).trunc().clamp(info.min, info.max).to(tensor.dtype)
    if tensor.is_complex():
        return torch.complex(tensor.real * factor, tensor.imag * factor)
    return tensor * factor


def reduced(op, tensors, pre, post):
    dtype = tensors[0].dtype
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    tensors = [scaled(tensor.cpu().to(wide), pre) for tensor in tensors]
    result = tensors[0]
    for tensor in tensors[1:]:
        result = combine(op, result, tensor)
    return scaled(result, post).to(dtype)


@pytest.mark.parametrize("op", [ReduceOp.Sum, ReduceOp.Min, ReduceOp.Max, ReduceOp.Product], ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_reduce(gpu, dtype, op):
    if dtype.is_complex and op in (ReduceOp.Min, ReduceOp.Max):
        with pytest.raises(RingreduceError, match="reducing"):
            gpu.reduce(0, [0], 1, CODES[dtype], int(op), 1.0, 1.0, stream())
        return
    for sources, count, shift, (pre, post) in itertools.product(
        (1, 2, 3, 64), (1, 33, 100_003), (0, 1), ((1.0, 1.0), (0.5, 0.75 if dtype == torch.int64 else 1.75))
    ):
        tensors = [random(dtype, count, i * shift % 7) for i in range(sources)]
        result = random(dtype, count, shift)
        expected = reduced(op, tensors, pre, post)
        addresses = [tensor.data_ptr() for tensor in tensors]
        gpu.reduce(result.data_ptr(), addresses, count, CODES[dtype], int(op), pre, post, stream())
        assert_same(result.cpu(), expected)
        gpu.reduce(addresses[-1], addresses, count, CODES[dtype], int(op), pre, post, stream())
        assert_same(tensors[-1].cpu(), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reduce_of_nan_and_infinity(gpu, dtype):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, -0.0, 6e-8], dtype=dtype, device=DEVICE)
    a, b = special.repeat(len(special)), special.repeat_interleave(len(special))
    for op in (ReduceOp.Sum, ReduceOp.Product, ReduceOp.Min, ReduceOp.Max):
        result = torch.empty_like(a)
        gpu.reduce(result.data_ptr(), [a.data_ptr(), b.data_ptr()], len(a), CODES[dtype], int(op), 1.0, 1.0, stream())
        expected = reduced(op, [a, b], 1, 1)
        assert torch.equal(result.cpu().nan_to_num(7), expected.nan_to_num(7))


# --- merge_rows ----------------------------------------------------------------------------------


def merge(gpu, values, order, first, scale):
    out = torch.full((len(first) - 1, values.shape[1]), 9, dtype=values.dtype, device=DEVICE)
    args = order.data_ptr(), first.data_ptr(), *out.shape, CODES[values.dtype], scale, stream()
    gpu.merge_rows(out.data_ptr(), values.data_ptr(), *args)
    return out


@pytest.mark.parametrize("width", [1, 3, 8, 64, 100, 1024, 5000])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_merge_rows(gpu, dtype, width):
    rows = [[], [3], [1, 0], [7, 7, 2, 5], [], [9, 8, 6, 4, 3, 2]]
    values = random(dtype, 10 * width).view(10, width)
    order = torch.tensor([row for some in rows for row in some], device=DEVICE)
    first = torch.tensor([0, *itertools.accumulate(map(len, rows))], device=DEVICE)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for scale in (1.0, 1 / 3):
        expected = torch.zeros(len(rows), width, dtype=wide)
        for at, some in enumerate(rows):
            for number, row in enumerate(some):
                value = values[row].cpu().to(wide)
                expected[at] = expected[at] + value if number else value
        assert_same(merge(gpu, values, order, first, scale).cpu(), (expected * scale).to(dtype))


def test_merge_many_rows(gpu):
    indices = torch.randint(0, 5000, (40_000,), device=DEVICE)
    values = torch.randint(-8, 8, (40_000, 96), device=DEVICE).float()  # sums are exact in any order
    unique, places = indices.unique(return_inverse=True)
    order = places.argsort(stable=True)
    first = torch.cat([torch.zeros(1, dtype=torch.int64, device=DEVICE), places.bincount().cumsum(0)])
    expected = torch.zeros(len(unique), 96, device=DEVICE).index_add_(0, places, values)
    assert_same(merge(gpu, values, order, first, 1.0), expected)


# --- what is refused -----------------------------------------------------------------------------


def test_what_has_no_meaning_is_an_error(gpu):
    tensor = torch.zeros(8, device=DEVICE)
    address = tensor.data_ptr()
    for bucket, kind, scale in ((torch.int32, torch.float32, 1.0), (torch.int32, torch.int32, 2.0)):
        with pytest.raises(RingreduceError, match="packing tensors"):
            gpu.pack(address, CODES[bucket], CODES[kind], [address], [0], [8], scale, stream())
    gpu.pack(address, CODES[torch.float32], CODES[torch.float32], [], [], [], 2.0, stream())
    with pytest.raises(ValueError, match="sources"):
        gpu.reduce(address, [address] * 65, 8, CODES[torch.float32], int(ReduceOp.Sum), 1.0, 1.0, stream())
