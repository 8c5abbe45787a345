"""What the tests of GPU tensors share."""

from __future__ import annotations

import torch

import ringreduce as rr


def path(process_set: rr.ProcessSet = rr.global_process_set) -> tuple[str, str]:
    engine = process_set.usable_engine()
    return engine.gpu_path(process_set.process_set_id or 0)


def gradients(model: torch.nn.Module, optimizer: rr.DistributedOptimizer, x: torch.Tensor) -> list[torch.Tensor]:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.synchronize()
    return [p.grad.clone() for p in model.parameters()]


class TwoDtypes(torch.nn.Module):
    """Its gradients are in two buckets."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.double_ = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.single(x).double() + self.double_(x.double())
