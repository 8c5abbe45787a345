"""DistributedOptimizer used wrongly, and ranks that do not fit together."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from oracle import WORLD
from torch import nn
from training import assert_same_on_all_ranks, distributed, make

import ringreduce as rr

pytestmark = pytest.mark.once  # about torch's side of the optimizer


def linear(inputs: int = 3, **options: object) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = make(lambda: nn.Linear(inputs, 2))
    return model, distributed(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)


def assert_trains(rank: int) -> None:
    """The library works on."""
    model, optimizer = linear()
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(rank))).sum().backward()
        optimizer.step()
    assert_same_on_all_ranks(model)


def test_shapes_that_differ(rank, size):
    if size < 2:
        pytest.skip("needs 2 ranks")
    model, _optimizer = linear(4 if rank == size - 1 else 3)
    with pytest.raises(rr.RingreduceError) as info:
        model.weight.sum().backward()
    text = str(info.value)
    assert "'weight'" in text
    assert "'bias'" not in text
    assert "(2, 3)" in text
    assert f"(2, 4) torch.float32 on rank(s) {size - 1}" in text
    assert_trains(rank)


def test_parameters_that_one_rank_lacks(rank, size):
    if size < 2:
        pytest.skip("needs 2 ranks")
    model = make(lambda: nn.Linear(3, 2, bias=rank > 0))
    distributed_ = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(rr.RingreduceError, match=r"'bias' is absent on rank\(s\) 0"):
        model.weight.sum().backward()
    del distributed_
    assert_trains(rank)


def test_options_that_differ(rank, size):
    if size < 2:
        pytest.skip("needs 2 ranks")
    model, _optimizer = linear(op=rr.Sum if rank else rr.Average)
    with pytest.raises(rr.RingreduceError, match=r"op=Average .* on rank\(s\) 0"):
        model.weight.sum().backward()
    assert_trains(rank)


def test_too_many_passes(rank):
    model, optimizer = linear(backward_passes_per_step=2)
    for _ in range(2):
        model.weight.sum().backward()
    with pytest.raises(AssertionError, match="backward_passes_per_step=2"):
        model.weight.sum().backward()
    optimizer.zero_grad()
    for _ in range(2):
        model.weight.sum().backward()
    optimizer.step()
    assert_trains(rank)


def test_zero_grad_during_a_reduction(rank):
    model = nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    model(torch.ones(1, 600)).sum().backward()
    hook = model[0].weight.register_post_accumulate_grad_hook(lambda _: optimizer.zero_grad())
    with pytest.raises(AssertionError, match="zero_grad"):
        model(torch.ones(1, 600)).sum().backward()
    hook.remove()
    optimizer.synchronize()
    optimizer.zero_grad()
    model(torch.ones(1, 600)).sum().backward()
    assert model[1].bias.grad.tolist() == [1.0] * 600
    assert_trains(rank)


def patiently(rank: int, call: Callable[[], object]) -> None:
    """However late the machine makes the others."""
    while True:
        try:
            call()
            return
        except rr.RingreduceTimeoutError:
            assert rank == 0


def test_a_deadline_that_passes(rank, size, monkeypatch):
    """The reduction is still in flight; when the late ranks come, it is waited for again."""
    if size < 2:
        pytest.skip("needs 2 ranks")
    if rank == 0:  # the others are only late, however slow the machine is
        monkeypatch.setenv("RINGREDUCE_TIMEOUT", "1")
    rr.shutdown()
    rr.init()
    model, optimizer = linear()
    try:
        model.weight.sum().backward()
    except rr.RingreduceTimeoutError:
        patiently(rank, optimizer.synchronize)
    optimizer.zero_grad()
    if rank == 0:
        with pytest.raises(rr.RingreduceTimeoutError):
            model.weight.sum().backward()
        with pytest.raises(AssertionError, match="zero_grad"):
            optimizer.zero_grad()
    WORLD.Barrier()
    if rank:
        model.weight.sum().backward()
    patiently(rank, optimizer.step)  # the deadline counts from the launch: rank 0 has next to no patience left
    assert set(model.weight.grad.flatten().tolist()) == {1.0}
    WORLD.Barrier()
    monkeypatch.undo()
    rr.shutdown()
    rr.init()
    assert_trains(rank)


def step_warnings(optimizer: torch.optim.Optimizer) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    return [str(warning.message) for warning in caught]


def test_step_after_synchronize(rank, size):
    model, optimizer = linear(op=rr.Sum)
    model.weight.sum().backward()
    optimizer.synchronize()
    (message,) = step_warnings(optimizer)
    assert "skip_synchronize()" in message
    assert set(model.weight.grad.flatten().tolist()) == {size}, "reduced once"

    optimizer.zero_grad()
    model.weight.sum().backward()
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        assert step_warnings(optimizer) == []
    assert step_warnings(optimizer) == []


def test_wrapping_twice():
    _, optimizer = linear()
    with pytest.raises(ValueError, match="optimizer"):
        rr.DistributedOptimizer(optimizer)
