"""The GPU kernels: what each is given, what it must give, and how many bytes that moves.

A case makes as many sets of buffers as it takes to outgrow the L2 cache; a sample calls the
kernel once on each. Its rival is a device-to-device copy that reads and writes as many bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.on_gpu.clock import Turn, alternate
from benchmarks.on_gpu.device import GpuDevice
from ringreduce._gradients.layout import Bucket
from ringreduce._ops import dtypes
from ringreduce.bench.turns import Effort, Progress, Timing
from ringreduce.bench.units import parse_size, show_size
from ringreduce.reduction import Sum

MIXED_TENSORS = 200
SMALL_TENSORS, SMALL_BYTES = 2000, 4 << 10
SPREAD = 5  # powers of ten between the smallest and the largest of mixed sizes
TENSOR_ALIGNMENT = 512  # bytes: where torch's allocator puts tensors
SOURCES = (2, 8)  # of the reduction
ROW = 128  # elements of a sparse row
TARGET_MIXED, TARGET_SMALL = 0.9, 0.7  # of the copy's bandwidth
ROTATED_L2 = 4  # sizes of the L2 cache that the sets of a sample touch at least
MOST_SETS = 256
DATA = 1 << 8  # distinct values of the inputs: whole numbers, so that every dtype and order is exact

Parts = tuple[Callable[[], Any], Callable[[], bool]]  # call, whether its result is right


@dataclass(frozen=True)
class Case:
    """A kernel under a load.

    Args:
        nbytes: read and written by one call.
        target: share of the copy's bandwidth that it must reach; None if there is no such limit.
        prepare: makes one set of buffers on a device.
    """

    kernel: str
    load: str
    nbytes: int
    target: float | None
    prepare: Callable[[GpuDevice], Parts]


@dataclass(frozen=True)
class KernelRow:
    """A case and its copy; seconds a call."""

    kernel: str
    load: str
    nbytes: int
    target: float | None
    timing: Timing
    copy: Timing
    starved: bool  # the GPU waited for the host, whose time is in the samples

    @property
    def rate(self) -> float:
        """Bytes/s, read and written."""
        return self.nbytes / self.timing.median

    @property
    def share(self) -> float:
        """Of the copy's bandwidth."""
        return self.copy.median / self.timing.median

    @property
    def is_met(self) -> bool | None:
        """Whether it reaches its target."""
        return None if self.target is None else self.share >= self.target

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, bytes/s."""
        derived = {"rate": self.rate, "copy_rate": self.nbytes / self.copy.median, "share": self.share}
        return {"part": "kernels", **asdict(self), **derived}


# --- loads ---------------------------------------------------------------------------------------


def mixed_sizes(total: int, tensors: int = MIXED_TENSORS) -> list[int]:
    """Elements of each tensor: from a few to much of the whole, as models have them; they sum to `total`.

    The same in every run. ValueError where `total` is fewer than one for each tensor.
    """
    if total < tensors:
        raise ValueError(f"{tensors} tensors have {tensors} elements at least, not {total}")
    chance = random.Random(0)
    weights = [10 ** (SPREAD * chance.random()) for _ in range(tensors)]
    spare, scale = total - tensors, sum(weights)
    sizes = [1 + int(spare * weight / scale) for weight in weights]
    sizes[sizes.index(max(sizes))] += total - sum(sizes)
    return sizes


def parse_load(text: str) -> int:
    """Bytes of the mixed tensors. ValueError where that is too few."""
    nbytes = parse_size(text)
    if nbytes < 4 * MIXED_TENSORS:
        raise ValueError(f"{text} is too small: {MIXED_TENSORS} tensors have {4 * MIXED_TENSORS} bytes at least")
    return nbytes


def memory_needed(nbytes: int) -> int:
    """Bytes on the GPU, about: tensors, bucket, the copy's two buffers, what the check takes."""
    return 7 * nbytes


def cases(nbytes: int) -> list[Case]:
    """All of them; the mixed tensors are float32 and sum to `nbytes`."""
    mixed = mixed_sizes(nbytes // 4)
    small = [SMALL_BYTES // 4] * SMALL_TENSORS
    mixed_text = f"{MIXED_TENSORS} tensors, {show_size(nbytes)}"
    small_text = f"{SMALL_TENSORS} tensors of {show_size(SMALL_BYTES)}"
    found = []
    for kernel in ("pack", "unpack"):
        found += [
            _moving(kernel, mixed_text, mixed, torch.float32, TARGET_MIXED),
            _moving(kernel, small_text, small, torch.float32, TARGET_SMALL),
            _moving(kernel, mixed_text, mixed, torch.bfloat16, None),
            _moving(kernel, mixed_text, mixed, torch.float16, None),
        ]
    found += [_reducing(sources, nbytes // 4 // sources) for sources in SOURCES]
    rows = max(2, nbytes // 4 // ROW)
    return [*found, _merging(rows, max(1, rows // 2))]


def _moving(kernel: str, load: str, sizes: Sequence[int], dtype: torch.dtype, target: float | None) -> Case:
    """pack into a bucket of `dtype`, or unpack from it; the tensors are float32."""
    if dtype != torch.float32:
        names = ("float32", dtypes.NAMES[dtypes.CODES[dtype]])
        load += ", {} to {}".format(*(names if kernel == "pack" else names[::-1]))
    nbytes = sum(sizes) * (torch.float32.itemsize + dtype.itemsize)
    return Case(kernel, load, nbytes, target, partial(_move, kernel, sizes, dtype))


def _reducing(sources: int, elements: int) -> Case:
    load = f"{sources} sources of {show_size(4 * elements)}"
    return Case("reduce", load, 4 * elements * (sources + 1), None, partial(_reduce, sources, elements))


def _merging(rows: int, out_rows: int) -> Case:
    load = f"{rows} rows of {ROW} into {out_rows}"
    nbytes = 4 * ROW * (rows + out_rows) + 8 * (rows + out_rows + 1)
    return Case("merge_rows", load, nbytes, None, partial(_merge, rows, out_rows))


# --- sets of buffers -----------------------------------------------------------------------------


def _numbers(device: GpuDevice, elements: int) -> Tensor:
    return torch.randint(DATA, (elements,), device=device.torch).float()


def _move(kernel: str, sizes: Sequence[int], dtype: torch.dtype, device: GpuDevice) -> Parts:
    bucket = Bucket(dtype)
    for index, size in enumerate(sizes):
        bucket.add(index, size)
    step = TENSOR_ALIGNMENT // 4
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // step) * step)
    memory, flat = _numbers(device, starts[-1]), _numbers(device, bucket.end).to(dtype)
    tensors = [memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    views = [flat[offset : offset + size] for offset, size in zip(bucket.offsets, sizes, strict=True)]
    given, taken = (tensors, views) if kernel == "pack" else (views, tensors)
    call = partial(
        getattr(device.gpu, kernel), flat.data_ptr(), dtypes.CODES[dtype], dtypes.CODES[torch.float32],
        [one.data_ptr() for one in tensors], bucket.offsets, list(sizes), 1.0, device.stream,
    )  # fmt: skip
    return call, lambda: torch.equal(torch.cat(taken).to(torch.float32), torch.cat(given).to(torch.float32))


def _reduce(sources: int, elements: int, device: GpuDevice) -> Parts:
    given = [_numbers(device, elements) for _ in range(sources)]
    result, code = torch.empty_like(given[0]), dtypes.CODES[torch.float32]

    def call() -> None:
        addresses = [one.data_ptr() for one in given]
        device.gpu.reduce(result.data_ptr(), addresses, elements, code, int(Sum), 1.0, 1.0, device.stream)

    return call, lambda: torch.equal(result, sum(given[1:], given[0]))


def _merge(rows: int, out_rows: int, device: GpuDevice) -> Parts:
    values = _numbers(device, rows * ROW).view(rows, ROW)
    index = torch.arange(rows, device=device.torch) % out_rows
    order = torch.argsort(index, stable=True)
    first = torch.zeros(out_rows + 1, dtype=torch.int64, device=device.torch)
    torch.cumsum(torch.bincount(index, minlength=out_rows), 0, out=first[1:])
    result, code = torch.empty(out_rows, ROW, device=device.torch), dtypes.CODES[torch.float32]

    def call() -> None:
        device.gpu.merge_rows(
            result.data_ptr(), values.data_ptr(), order.data_ptr(), first.data_ptr(), out_rows, ROW, code, 1.0,
            device.stream,
        )  # fmt: skip

    return call, lambda: torch.equal(result, torch.zeros_like(result).index_add_(0, index, values))


def _copies(device: GpuDevice, nbytes: int, sets: int) -> list[Callable[[], Any]]:
    """As many bytes, half of them read and half written."""

    def buffer() -> Tensor:
        return torch.zeros(max(1, nbytes // 2), dtype=torch.uint8, device=device.torch)

    return [partial(buffer().copy_, buffer()) for _ in range(sets)]


# --- measuring -----------------------------------------------------------------------------------


def set_count(nbytes: int, l2_bytes: int) -> int:
    """How many sets of buffers a sample goes through, so that none is left in the L2 cache for the next."""
    return max(1, min(MOST_SETS, -(-ROTATED_L2 * l2_bytes // nbytes)))


def measure_kernels(device: GpuDevice, nbytes: int, effort: Effort, progress: Progress) -> list[KernelRow]:
    """Every case on this rank alone."""
    return [_measure(device, case, effort, progress) for case in cases(nbytes)]


def _measure(device: GpuDevice, case: Case, effort: Effort, progress: Progress) -> KernelRow:
    progress.begin(f"{case.kernel}, {case.load}")
    sets = set_count(case.nbytes, device.l2_bytes)
    prepared = [case.prepare(device) for _ in range(sets)]
    device.synchronize()
    for call, is_right in prepared:
        call()
        device.synchronize()
        if not is_right():
            raise AssertionError(f"{case.kernel} of {case.load} gives a wrong result")
    ours = Turn(case.kernel, [call for call, _ in prepared])
    copy = Turn("copy", _copies(device, case.nbytes, sets))
    timings = alternate(device, [ours, copy], effort, progress.step)
    own = timings[ours.name], timings[copy.name]
    return KernelRow(case.kernel, case.load, case.nbytes, case.target, *own, ours.is_starved or copy.is_starved)
