"""Submission: how long the host is busy with handing an allreduce to the GPU.

    host   synchronize, barrier │ submit │ wait │ synchronize ...
                                 └ timed ┘└timed┘

The GPU is idle before each, so nothing waits for it. `submit` returns when the operation is on
its way, `wait` when the caller's stream waits for it (the host does not wait for the GPU).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import ringreduce as rr
from benchmarks.on_gpu.device import GpuDevice
from ringreduce._core import GpuPlan, agree_channel
from ringreduce._ops import dtypes
from ringreduce._runtime import running
from ringreduce.bench.collectives import Buffers
from ringreduce.bench.job import Job
from ringreduce.bench.turns import Effort, Progress, Timing, summary, take_turns
from ringreduce.bench.units import show_size
from ringreduce.doctor import nccl

SIZES = (4 << 10, 25 << 20)  # bytes: a small tensor, a full bucket
TARGET_SECONDS = 10e-6  # of a planned bucket


@dataclass(frozen=True)
class Way:
    """One library's. `submit` returns what `wait` takes."""

    name: str
    submit: Callable[[], Any]
    wait: Callable[[Any], Any]


@dataclass(frozen=True)
class SubmissionRow:
    """One way at one size; seconds of the host, on the rank that takes longest."""

    way: str
    ranks: int
    nbytes: int
    submit: Timing
    wait: Timing
    target: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether it reaches its target."""
        return None if self.target is None else self.submit.median <= self.target

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes."""
        return {"part": "submission", **asdict(self)}


def measure_submission(
    job: Job, device: GpuDevice, sizes: Sequence[int], effort: Effort, progress: Progress
) -> tuple[list[SubmissionRow], list[str]]:
    """Every size. Collective over all ranks."""
    rows: list[SubmissionRow] = []
    notes: dict[str, None] = {}
    device.first_operation()
    path, why = running.require().engine.gpu_path(0)
    if path == "nccl":
        job.start_torch("nccl", device_id=device.torch)
    else:
        notes[f"ringreduce goes through host memory: {why}"] = None
    for nbytes in sizes:
        progress.begin(f"submission, {show_size(nbytes)}")
        with _ways(job, device, nbytes, on_nccl=path == "nccl") as ways:
            samples = {one.name: partial(_sample, job, device, one) for one in ways}
            turns = take_turns(samples, effort, progress.step, job.longest)  # NCCL connects the ranks while warming up
        for way, spans in turns.items():
            submit, wait = (summary(job.largest(one)) for one in zip(*spans, strict=True))
            target = TARGET_SECONDS if way == "plan" else None
            rows.append(SubmissionRow(way, job.size, nbytes, submit, wait, target))
    return rows, list(notes)


@contextmanager
def _ways(job: Job, device: GpuDevice, nbytes: int, on_nccl: bool) -> Iterator[list[Way]]:
    """All there are, each on a tensor of its own."""
    with ExitStack() as closing:
        tensors = iter([torch.zeros(nbytes // 4, device=device.torch) for _ in range(4)])
        stream = device.stream
        bucket = next(tensors)
        plan = _plan(job, bucket, closing, on_nccl)
        ours = next(tensors)
        ways = [
            Way("plan", partial(plan.launch, 0, stream=stream), lambda _: plan.wait(0, stream)),
            Way("tensor", partial(rr.allreduce_async_, ours, op=rr.Sum), rr.synchronize),
        ]
        if on_nccl:
            share = partial(job.comm.bcast, root=0)
            direct = closing.enter_context(nccl.Communicator(device.gpu.nccl_path, job.rank, job.size, share))
            theirs = next(tensors)
            ways.append(Way("nccl", direct.all_reduce(theirs, theirs, nccl.SUM, stream), _succeeded))
            ways.append(Way("torch", partial(dist.all_reduce, next(tensors), async_op=True), lambda work: work.wait()))
        yield ways
        device.synchronize()


def _plan(job: Job, bucket: Tensor, closing: ExitStack, on_nccl: bool) -> GpuPlan:
    """One bucket, as DistributedOptimizer has them."""
    engine = running.require().engine
    host = None
    if not on_nccl:
        buffers = Buffers(job, "float32", bucket.numel())
        host = buffers.plan
        closing.enter_context(buffers.closing)
    infos = job.comm.allgather(engine.gpu_info(0))
    spec = (bucket.data_ptr(), bucket.numel(), dtypes.CODES[bucket.dtype])
    channel = agree_channel(job.comm.allgather(engine.offer_channel()), 0)
    plan = GpuPlan(engine, 0, infos, [spec], int(rr.Sum), 1.0, 1.0, host, channel)
    closing.callback(plan.close)
    return plan


def _succeeded(result: int) -> None:
    if result != 0:
        raise AssertionError(f"ncclAllReduce returned {result}")


def _sample(job: Job, device: GpuDevice, one: Way) -> tuple[float, float]:
    device.synchronize()
    job.barrier()
    begin = time.perf_counter()
    token = one.submit()
    submitted = time.perf_counter()
    one.wait(token)
    return submitted - begin, time.perf_counter() - submitted
