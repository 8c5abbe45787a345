"""A training step on GPUs without communication, with ringreduce, and with DDP over NCCL: one job.

    sample: synchronize, barrier │ step step step step step, synchronize │

As in step.py every job has one model in one mode. A sample is a few steps with the host running
ahead of the GPU, as it does in programs. One more block is traced, not timed: it tells how often
the host waits for the GPU within a step.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.on_gpu.device import GpuDevice
from benchmarks.on_gpu.models import GPU_MODELS
from ringreduce.bench.job import Job
from ringreduce.bench.step import MODES, Trainer
from ringreduce.bench.turns import Effort, Progress, Timing, summary, take_turns

GPU_MODES = ("none", "ringreduce", "ddp")
BLOCK = 5  # steps of a sample
WARM_UP = 2  # samples
MOST_OF_NONE = 1.01  # of a step's time without communication, at 1 rank
LEAST_OF_DDP = 1.0  # DDP's time / ours, where two ranks share a GPU
TRACED = "benchmarks/gpu.py steps"
_WAITS = re.compile(r"(cuda|cu)(Stream|Device|Event|Ctx)Synchronize(_.*)?|cudaMemcpy")
_LAUNCHES = re.compile(r"(cuda|cu)LaunchKernel.*")


@dataclass(frozen=True)
class GpuStepRow:
    """One mode on one model."""

    model: str
    parameters: int
    ranks: int
    shared: bool  # several ranks on one GPU
    mode: str
    timing: Timing  # of samples; where there were several jobs, of their medians
    waits: float | None  # of the host for the GPU, a step, on the rank with most; None: nothing could be traced
    memory: int  # most bytes that torch had allocated on the GPU, of the rank with most
    jobs: list[float] = field(default_factory=list)  # each job's median

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes."""
        return {"part": "step", **asdict(self)}


def time_gpu_step(job: Job, device: GpuDevice, name: str, mode: str, steps: int, progress: Progress) -> GpuStepRow:
    """Measure one model in one mode, `steps` of them at least. Collective over all ranks."""
    if MODES[mode].torch:
        job.start_torch("nccl", device_id=device.torch)
    progress.begin(f"{name}, {mode}")
    torch.set_float32_matmul_precision("high")
    with device.torch:
        trainer = Trainer(GPU_MODELS[name], 1 + job.rank, MODES[mode])
    effort = Effort(-(-steps // BLOCK), warm_up=WARM_UP)
    spans = take_turns({mode: partial(_sample, job, device, trainer.step)}, effort, progress.step)[mode]
    waits = count_waits(trainer.step)
    if mode != "none":
        trainer.check(job)
    everyone: list[tuple[float | None, int]] = job.comm.allgather((waits, device.peak_memory()))
    traced = [one for one, _ in everyone if one is not None]
    return GpuStepRow(
        name, trainer.parameters, job.size, job.size > device.count, mode,
        summary(job.durations(spans), BLOCK), max(traced) if len(traced) == job.size else None,
        max(memory for _, memory in everyone),
    )  # fmt: skip


def _sample(job: Job, device: GpuDevice, step: Callable[[], Any]) -> tuple[float, float]:
    device.synchronize()
    job.barrier()
    begin = time.perf_counter()
    for _ in range(BLOCK):
        step()
    device.synchronize()
    return begin, time.perf_counter()


class Event(NamedTuple):
    """A call in a trace; times in any unit."""

    name: str
    begin: float
    end: float


def count_waits(step: Callable[[], Any], steps: int = BLOCK) -> float | None:
    """How often a step makes the host wait for the GPU: calls of CUDA's, by any thread, in a trace.

    None where the trace has no calls of CUDA's at all.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes to stderr; only errors matter here
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if torch.cuda.is_available() else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile, torch.profiler.record_function(TRACED):
        for _ in range(steps):
            step()
    waits = waits_within(of_host(profile.events()))
    return None if waits is None else waits / steps


def of_host(events: Iterable[Any]) -> list[Event]:
    """Without the GPU's own: there an annotation of the host's is once more, for each stream."""
    return [
        Event(one.name, one.time_range.start, one.time_range.end) for one in events if one.device_type.name == "CPU"
    ]


def waits_within(events: Iterable[Event]) -> int | None:
    """Those in the time of the TRACED event: ending the trace waits for the GPU too."""
    events = list(events)
    (whole,) = (one for one in events if one.name == TRACED)
    names = [one.name for one in events if whole.begin <= one.begin <= whole.end]
    if not any(_LAUNCHES.fullmatch(name) for name in names):
        return None
    return sum(bool(_WAITS.fullmatch(name)) for name in names)


def of_jobs(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of one row from those of its jobs: medians over the rounds, and the worst of the rest."""
    medians = [job["timing"]["median"] for job in jobs]
    waits = [job["waits"] for job in jobs]
    return {
        **jobs[0],
        "timing": asdict(summary(medians)),
        "waits": None if None in waits else max(waits),
        "memory": max(job["memory"] for job in jobs),
        "jobs": medians,
    }
