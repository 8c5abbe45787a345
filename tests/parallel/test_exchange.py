"""The seam of DistributedOptimizer: an exchange that owns the step, and the memory of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from training import assert_same_on_all_ranks

import ringreduce as rr
from ringreduce._gradients.exchange import GradientExchange
from ringreduce._gradients.options import AllParameters, Named, Options


class SlicedStep(GradientExchange):
    """Parameters lie in one piece; each rank reduces and steps a slice of it, with state for that slice only."""

    def __init__(self, named: Sequence[Named], options: Options, all_parameters: AllParameters) -> None:
        self.set = options.process_set
        self.parameters = [parameter for _, parameter in named]
        numels = [parameter.numel() for parameter in self.parameters]
        share = -(-sum(numels) // self.set.size())
        self.flat = torch.zeros(share * self.set.size())
        self.gradient = torch.zeros_like(self.flat)
        for parameter, view in zip(
            self.parameters, self.flat.split([*numels, len(self.flat) - sum(numels)])[:-1], strict=True
        ):
            parameter.data = view.view(parameter.shape).copy_(parameter.detach())
        begin = self.set.rank() * share
        self.slice = nn.Parameter(self.flat[begin : begin + share])

    def before_step(self) -> None:
        gradients = torch.cat([parameter.grad.flatten() for parameter in self.parameters])
        self.gradient[: len(gradients)] = gradients
        self.slice.grad = rr.reducescatter(self.gradient, process_set=self.set)

    def step(self, optimizer: torch.optim.Optimizer, run: Callable[[], Any]) -> Any:
        (group,) = optimizer.param_groups
        group["params"] = [self.slice]
        try:
            result = run()
        finally:
            group["params"] = self.parameters
        self.flat.copy_(rr.allgather(self.slice.detach(), process_set=self.set))
        return result


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def test_a_step_that_is_shared_out_among_the_ranks(rank, size):
    model, optimizer = make()
    optimizer = rr.DistributedOptimizer(optimizer, model.named_parameters(), exchange=SlicedStep)
    plain, its = make()
    for step in range(4):
        whole = torch.randn(size, 3, 5, generator=torch.Generator().manual_seed(step))
        for one, one_s, data in ((model, optimizer, whole[rank]), (plain, its, whole.flatten(0, 1))):
            one_s.zero_grad()
            one(data).square().mean().backward()
            one_s.step()
        assert_same_on_all_ranks(model)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    (state,) = optimizer.state.values()
    share = -(-sum(p.numel() for p in plain.parameters()) // size)
    assert state["exp_avg"].numel() == share, "a rank has the state of its slice"
