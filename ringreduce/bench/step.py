"""A training step without communication, with ringreduce, and with DDP over Gloo: one mode's job.

A step is zero_grad, forward, backward and the optimizer (SGD with momentum): all that the ranks
wait for. Every job has one model in one mode, as programs do (jobs.py runs them): memory that
another mode has freed would be there for this one to take, which is worth a fifth of the step of a
large model without communication.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ringreduce as rr
from ringreduce.bench.job import Job
from ringreduce.bench.models import MODELS, Model
from ringreduce.bench.turns import Effort, Progress, Timing, summary, take_turns

WARM_UP = 5  # the first step agrees on buckets, the second is the first to use them; then malloc settles

Trained = tuple[nn.Module, torch.optim.Optimizer]


def _distributed(compression: Any) -> Callable[[nn.Module, torch.optim.Optimizer], Trained]:
    def wrap(module: nn.Module, optimizer: torch.optim.Optimizer) -> Trained:
        named = module.named_parameters()
        return module, rr.DistributedOptimizer(optimizer, named_parameters=named, compression=compression)

    return wrap


@dataclass(frozen=True)
class Mode:
    """How ranks train together. `wrap` is what it makes of a module and its optimizer."""

    wrap: Callable[[nn.Module, torch.optim.Optimizer], Trained]
    library: bool = False  # whether ringreduce runs
    torch: bool = False  # whether torch.distributed does


MODES = {
    "none": Mode(lambda module, optimizer: (module, optimizer)),
    "ringreduce": Mode(_distributed(rr.Compression.none), library=True),
    "bf16": Mode(_distributed(rr.Compression.bf16), library=True),
    "ddp": Mode(lambda module, optimizer: (DistributedDataParallel(module), optimizer), torch=True),
}


@dataclass(frozen=True)
class StepRow:
    """One mode on one model."""

    model: str
    parameters: int
    mode: str
    timing: Timing  # of steps; where there were several jobs, of their medians
    jobs: list[float] = field(default_factory=list)  # each job's median

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds."""
        own = {"model": self.model, "parameters": self.parameters, "mode": self.mode}
        return own | vars(self.timing) | {"jobs": self.jobs}


class Trainer:
    """A model, its optimizer and its data. Ranks have the same model, from one seed."""

    def __init__(self, model: Model, data_seed: int, mode: Mode = MODES["none"]) -> None:
        torch.manual_seed(0)
        module = model.build()
        self.parameters = sum(p.numel() for p in module.parameters())
        self.module, self.optimizer = mode.wrap(module, torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9))
        torch.manual_seed(data_seed)
        self.inputs, self.targets = model.data()
        self.loss = model.loss

    def step(self) -> None:
        """All that a program does for a batch."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss(self.module(self.inputs), self.targets))
        self.optimizer.step()

    def check(self, job: Job) -> None:
        """Where ranks communicate, they have the same parameters in the end."""
        sums = job.comm.allgather([p.detach().sum().item() for p in self.module.parameters()])
        if any(one != sums[0] for one in sums):
            raise AssertionError("the ranks have different parameters")


def time_steps(job: Job, name: str, mode: str, steps: int, progress: Progress) -> StepRow:
    """Measure one model in one mode. Collective over all ranks."""
    if MODES[mode].torch:
        job.start_torch()
    progress.begin(f"{name}, {mode}")
    trainer = Trainer(MODELS[name], 1 + job.rank, MODES[mode])

    def sample() -> tuple[float, float]:
        job.barrier()
        begin = time.perf_counter()
        trainer.step()
        return begin, time.perf_counter()

    spans = take_turns({mode: sample}, Effort(steps, warm_up=WARM_UP), progress.step)[mode]
    if mode != "none":
        trainer.check(job)
    return StepRow(name, trainer.parameters, mode, summary(job.durations(spans)))
