"""A training step without communication, with ringreduce, and with DDP over Gloo.

Every mode has its own instance of the model, from the same seed, and each rank its own inputs.
Modes take turns in blocks of a few steps. A step is zero_grad, forward, backward and the
optimizer (SGD with momentum): all that the ranks wait for.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ringreduce as rr
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender, Effort, Timing, alternate
from ringreduce.bench.models import MODELS, Model
from ringreduce.bench.sweep import Progress

BLOCK = 3  # steps in a row
WARM_UP = 3  # the first step agrees on buckets, the second is the first to use them


def _ringreduce(module: nn.Module, optimizer: torch.optim.Optimizer, compression: Any) -> Any:
    named = module.named_parameters()
    return module, rr.DistributedOptimizer(optimizer, named_parameters=named, compression=compression)


# mode -> what it makes of a module and its optimizer
MODES: dict[str, Callable[[nn.Module, torch.optim.Optimizer], tuple[nn.Module, torch.optim.Optimizer]]] = {
    "none": lambda module, optimizer: (module, optimizer),
    "ringreduce": lambda module, optimizer: _ringreduce(module, optimizer, rr.Compression.none),
    "bf16": lambda module, optimizer: _ringreduce(module, optimizer, rr.Compression.bf16),
    "ddp": lambda module, optimizer: (DistributedDataParallel(module), optimizer),
}


@dataclass(frozen=True)
class StepRow:
    """One mode on one model."""

    model: str
    parameters: int
    mode: str
    timing: Timing

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds."""
        return {"model": self.model, "parameters": self.parameters, "mode": self.mode, **vars(self.timing)}


def time_steps(
    job: Job, models: Sequence[str], modes: Sequence[str], effort: Effort, progress: Progress
) -> list[StepRow]:
    """Measure every model in every mode. Collective over all ranks."""
    if "ddp" in modes:
        job.start_gloo()
    rows = []
    for name in models:
        progress.begin(f"step of {name}")
        model = MODELS[name]
        trainers = {mode: _Trainer(job, model, mode) for mode in modes}
        contenders = [Contender(mode, lambda value: None, trainer.step) for mode, trainer in trainers.items()]
        for one in contenders * WARM_UP:
            one.call()
        timings = alternate(job, contenders, Effort(effort.repeats, effort.seconds, block=BLOCK), progress.step)
        for mode, trainer in trainers.items():
            trainer.check(job)
            rows.append(StepRow(name, trainer.parameters, mode, timings[mode]))
    return rows


def idle_cpu(seconds: float = 5.0) -> float:
    """CPU seconds that this process, all of its threads, uses a second while it sleeps."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / seconds


class _Trainer:
    def __init__(self, job: Job, model: Model, mode: str) -> None:
        torch.manual_seed(0)
        module = model.build()
        self.mode = mode
        self.parameters = sum(p.numel() for p in module.parameters())
        self.module, self.optimizer = MODES[mode](module, torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9))
        torch.manual_seed(1 + job.rank)
        self.inputs, self.targets = model.data()
        self.loss = model.loss

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss(self.module(self.inputs), self.targets))
        self.optimizer.step()

    def check(self, job: Job) -> None:
        """Where ranks communicate, they have the same parameters in the end."""
        sums = job.comm.allgather([p.detach().sum().item() for p in self.module.parameters()])
        if self.mode != "none" and any(one != sums[0] for one in sums):
            raise AssertionError(f"{self.mode}: the ranks have different parameters")
