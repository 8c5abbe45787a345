"""What is compared: one entry a collective, in it one line for each library's way of doing it.

The larger one of input and result has `elements` elements on each rank: an allgather's input is its part of them, a
reducescatter's result. The factor turns algbw (their bytes / time) into busbw, as nccl-tests define both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import ringreduce as rr
from ringreduce._core import ArenaPlan, agree_channel
from ringreduce._ops import dtypes
from ringreduce._runtime import running, segments
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender

DTYPES = tuple(name for name in dtypes.NAMES if name != "bool")
OURS = ("ringreduce", "arena")
PEERS = ("memcpy", "mpi", "gloo")
MPI_TYPES = {
    "uint8": "UINT8_T", "int8": "INT8_T", "int16": "INT16_T", "int32": "INT32_T", "int64": "INT64_T",
    "float32": "FLOAT", "float64": "DOUBLE", "complex64": "C_FLOAT_COMPLEX", "complex128": "C_DOUBLE_COMPLEX",
}  # fmt: skip
GLOO_TYPES = ("uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64")


MARKS = 100  # values of the check, that every dtype holds exactly


class Unsupported(Exception):
    """A peer that has no such collective for this dtype."""


class Buffers:
    """The tensors of one size, made when first asked for. Libraries work on the same ones."""

    def __init__(self, job: Job, dtype: str, elements: int, name: str | None = None) -> None:
        self.job, self.dtype, self.elements = job, dtype, elements
        self.name = name  # of our operations
        self.data = torch.zeros(elements, dtype=getattr(torch, dtype))
        self.closing = ExitStack()

    @cached_property
    def part(self) -> Tensor:
        """This rank's share: elements / size of them."""
        return torch.zeros(self.elements // self.job.size, dtype=self.data.dtype)

    @cached_property
    def target(self) -> Tensor:
        return torch.zeros_like(self.data)

    @cached_property
    def plan(self) -> ArenaPlan:
        """One bucket in the arena, as DistributedOptimizer has them."""
        context, everyone = running.require(), range(self.job.size)
        spec = [(self.elements, dtypes.CODES[self.data.dtype])]
        nbytes, reserve = ArenaPlan.segment_bytes(context.local_size, spec)
        shared = segments.share(nbytes, self.job.rank, everyone, context.host_of, self.job.comm.allgather, reserve)
        assert shared.segment is not None
        channel = agree_channel(self.job.comm.allgather(context.engine.offer_channel()), 0)
        plan = ArenaPlan(context.engine, 0, spec, int(rr.Sum), 1.0, 1.0, shared.segment, channel)
        self.closing.callback(plan.close)
        return plan

    @cached_property
    def bucket(self) -> Tensor:
        return from_dlpack(self.plan.part(0, 0, 0, self.data.nbytes)).view(self.data.dtype)

    def mpi(self, tensor: Tensor, mpi_type: str | None) -> list[Any]:
        """The tensor as mpi4py's buffer, made once: converting it costs time in every call."""
        from mpi4py import MPI

        if mpi_type is None:
            raise Unsupported(f"mpi has no {self.dtype}")
        return [MPI.memory.fromaddress(tensor.data_ptr(), tensor.nbytes), getattr(MPI, mpi_type)]


Parts = tuple[Tensor, Callable[[], Any], Tensor | None]  # input, call, output (None: what the call returns)
Way = Callable[[Buffers], Parts]


@dataclass(frozen=True)
class Collective:
    """An entry of the table. `fill(rank)` is what the inputs hold when results are checked."""

    name: str
    bus_factor: Callable[[int], float]
    fill: Callable[[int], int]
    is_right: Callable[[Tensor, int], bool]
    ways: Mapping[str, Way]
    even: bool = False  # whether the ranks' shares must be equal
    at_root: bool = False  # only rank 0 has the result, in the first call

    def elements(self, nbytes: int, itemsize: int, size: int) -> int:
        """How many fit in `nbytes`, at least one (a rank)."""
        granule = size if self.even else 1
        return max(1, nbytes // itemsize // granule) * granule

    def contender(self, name: str, buffers: Buffers) -> Contender:
        """A way of doing it, with its result checked. Collective; Unsupported if there is none."""
        if name == "memcpy":  # the limit: every rank copies what a result holds, all at the same time
            return Contender(name, buffers.data.fill_, partial(buffers.target.copy_, buffers.data))
        if name not in self.ways:
            raise Unsupported(f"{name} is not measured for {self.name}")
        given, call, output = self.ways[name](buffers)
        given.fill_(self.fill(buffers.job.rank))
        returned = call()
        result = returned if output is None else output
        right = (self.at_root and buffers.job.rank > 0) or self.is_right(result, buffers.job.size)
        if not all(buffers.job.comm.allgather(right)):
            raise AssertionError(f"{name}: {self.name} of {buffers.elements} {buffers.dtype} gives a wrong result")
        return Contender(name, given.fill_, call)


def _arena(b: Buffers) -> Parts:
    launch, wait = b.plan.launch, b.plan.wait

    def call() -> None:
        launch(0)
        wait(0)

    return b.bucket, call, b.bucket


def _mpi_allreduce(b: Buffers) -> Parts:
    from mpi4py import MPI

    buffer = b.mpi(b.data, MPI_TYPES.get(b.dtype))
    return b.data, partial(b.job.comm.Allreduce, MPI.IN_PLACE, buffer), b.data


def _gloo_allreduce(b: Buffers) -> Parts:
    if b.dtype not in GLOO_TYPES:
        raise Unsupported(f"gloo has no {b.dtype}")
    return b.data, partial(dist.all_reduce, b.data), b.data


def _gloo_allgather(b: Buffers) -> Parts:
    whole, part = b.data.view(torch.uint8), b.part.view(torch.uint8)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its new name, its old one
    return b.part, partial(gather, whole, part), b.data


def _gloo_reduce(b: Buffers) -> Parts:
    if b.dtype not in GLOO_TYPES:
        raise Unsupported(f"gloo has no {b.dtype}")
    return b.data, _roots(b, lambda root: dist.reduce(b.data, root)), b.data


def _mpi_reduce(b: Buffers) -> Parts:
    from mpi4py import MPI

    here, there = b.mpi(b.data, MPI_TYPES.get(b.dtype)), b.mpi(b.target, MPI_TYPES.get(b.dtype))
    reduce, me = b.job.comm.Reduce, b.job.rank
    ways = ((here, there), (MPI.IN_PLACE, here))
    return b.data, _roots(b, lambda root: reduce(*ways[root == me], root=root)), b.data


def _mpi_reducescatter(b: Buffers) -> Parts:
    here, there = b.mpi(b.data, MPI_TYPES.get(b.dtype)), b.mpi(b.part, MPI_TYPES.get(b.dtype))
    return b.data, partial(b.job.comm.Reduce_scatter_block, here, there), b.part


def _roots(b: Buffers, call: Callable[[int], Any]) -> Callable[[], Any]:
    """A call whose root moves on: from one root, or to one, calls would overlap, untimed."""
    roots = itertools.cycle(range(b.job.size))
    return lambda: call(next(roots))


def _all_equal(value: Callable[[int], int]) -> Callable[[Tensor, int], bool]:
    return lambda result, size: bool((result == value(size)).all())


def _in_rank_order(result: Tensor, size: int) -> bool:
    return all(bool((part == _mark(rank)).all()) for rank, part in enumerate(result.chunk(size)))


def _mark(rank: int) -> int:
    """What a rank's inputs hold."""
    return rank % MARKS + 1


COLLECTIVES = {
    one.name: one
    for one in (
        Collective(
            "allreduce",
            bus_factor=lambda n: 2 * (n - 1) / n,
            fill=lambda rank: int(rank < MARKS),
            is_right=_all_equal(lambda size: min(size, MARKS)),
            ways={
                "ringreduce": lambda b: (b.data, partial(rr.allreduce_, b.data, b.name, op=rr.Sum), b.data),
                "arena": _arena,
                "mpi": _mpi_allreduce,
                "gloo": _gloo_allreduce,
            },
        ),
        Collective(
            "allgather",
            bus_factor=lambda n: (n - 1) / n,
            fill=_mark,
            is_right=_in_rank_order,
            even=True,
            ways={
                "ringreduce": lambda b: (b.part, partial(rr.allgather, b.part, b.name), None),
                "mpi": lambda b: (
                    b.part,
                    partial(b.job.comm.Allgather, b.mpi(b.part, "BYTE"), b.mpi(b.data, "BYTE")),
                    b.data,
                ),
                "gloo": _gloo_allgather,
            },
        ),
        Collective(
            "broadcast",
            bus_factor=lambda n: 1.0,
            fill=_mark,
            is_right=_all_equal(lambda size: _mark(0)),
            ways={
                "ringreduce": lambda b: (b.data, _roots(b, lambda root: rr.broadcast_(b.data, root, b.name)), b.data),
                "mpi": lambda b: (b.data, _roots(b, partial(b.job.comm.Bcast, b.mpi(b.data, "BYTE"))), b.data),
                "gloo": lambda b: (b.data, _roots(b, partial(dist.broadcast, b.data.view(torch.uint8))), b.data),
            },
        ),
        Collective(
            "reducescatter",
            bus_factor=lambda n: (n - 1) / n,
            fill=lambda rank: int(rank < MARKS),
            is_right=_all_equal(lambda size: min(size, MARKS)),
            even=True,
            ways={
                "ringreduce": lambda b: (b.data, partial(rr.reducescatter, b.data, b.name, op=rr.Sum), None),
                "mpi": _mpi_reducescatter,
            },
        ),
        Collective(
            "alltoall",
            bus_factor=lambda n: (n - 1) / n,
            fill=_mark,
            is_right=_in_rank_order,
            even=True,
            ways={
                "ringreduce": lambda b: (b.data, partial(rr.alltoall, b.data, None, b.name), None),
                "mpi": lambda b: (
                    b.data,
                    partial(b.job.comm.Alltoall, b.mpi(b.data, "BYTE"), b.mpi(b.target, "BYTE")),
                    b.target,
                ),
            },
        ),
        Collective(
            "reduce",
            bus_factor=lambda n: 1.0,
            fill=lambda rank: int(rank < MARKS),
            is_right=_all_equal(lambda size: min(size, MARKS)),
            at_root=True,
            ways={
                "ringreduce": lambda b: (
                    b.data,
                    _roots(b, lambda root: rr.reduce_(b.data, root, b.name, op=rr.Sum)),
                    b.data,
                ),
                "mpi": _mpi_reduce,
                "gloo": _gloo_reduce,
            },
        ),
    )
}
