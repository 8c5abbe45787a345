"""What programs do around a DistributedOptimizer that once gave wrong numbers, or hung. One function a fault."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from training import assert_same_on_all_ranks, distributed, make, part

import ringreduce as rr
from ringreduce._gradients import hooks


def mlp() -> nn.Module:
    return make(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)))


def inputs(step: int) -> Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.to(next(model.parameters()).dtype)).square().mean()


def trained(train: Callable[..., None]) -> None:
    """Train on this rank's share, and by plain torch on the whole batch: both come to the same parameters."""
    ours, plain = mlp(), mlp()
    train(ours, lambda optimizer: distributed(optimizer, ours), part)
    train(plain, lambda optimizer: optimizer, lambda x: x)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert_same_on_all_ranks(ours)


def test_a_scheduler_made_before_wrapping_follows_load_state_dict():
    def train(model, wrap, share):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        optimizer = wrap(optimizer)
        for step in range(4):
            if step == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.zero_grad()
            loss_of(model, share(inputs(step))).backward()
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == 0.1 / 16

    trained(train)


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def test_parameters_that_are_swapped(swapping):
    """Their hooks go with the old content; what is clipped is reduced all the same."""

    def train(model, wrap, share):
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(6):
            if step == 2:
                model.double()
            if step == 4:
                model.load_state_dict(copy.deepcopy(model.state_dict()))
            optimizer.zero_grad()
            (10 * loss_of(model, share(inputs(step)))).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()

    trained(train)


def test_gradients_of_swapped_parameters_that_come_without_notice(size, swapping):
    model = mlp()
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    loss_of(model, part(inputs(0))).backward()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    loss_of(model, part(inputs(1))).backward()  # no hook is called
    if size == 1:
        optimizer.step()
        return
    with pytest.raises(rr.RingreduceError, match=r"swap_tensors.*zero_grad\(\)"):
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, part(inputs(2))).backward()
    optimizer.step()
    assert_same_on_all_ranks(model)


def test_wrapping_over_another_wrapper_removes_its_hooks_once(monkeypatch):
    removed = []
    remove = hooks.remove
    monkeypatch.setattr(hooks, "remove", lambda handles: (removed.append(len(handles)), remove(handles)))
    model = mlp()
    older = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    newer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert removed == [4]
    with pytest.raises(rr.RingreduceError, match="newer"):
        older.step()
    loss_of(model, part(inputs(0))).backward()
    newer.step()
    assert_same_on_all_ranks(model)


def test_a_model_that_is_converted_with_its_last_gradients(size):
    """Summed over the ranks once more they would be wrong; an average of what is equal is right."""
    if size == 1:
        pytest.skip("needs 2 ranks")
    for op in (rr.Sum, rr.Average):
        model = mlp()
        optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model, op=op)
        loss_of(model, part(inputs(0))).backward()
        optimizer.step()
        model.double()
        backward = loss_of(model, part(inputs(1))).backward
        if op is rr.Average:
            backward()
            optimizer.step()
            assert_same_on_all_ranks(model)
        else:
            with pytest.raises(rr.RingreduceError, match="converted"):
                backward()


def test_gradients_that_are_never_cleared_outlive_a_pass_that_fails(size):
    """Those of the last step are put back where they were, and nobody has written to them."""
    if size == 1:
        pytest.skip("needs 2 ranks")
    model = mlp()
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(6):
        hook = None
        if step == 3:
            hook = model[0].weight.register_post_accumulate_grad_hook(lambda _: 1 / 0)
        try:
            loss_of(model, part(inputs(step))).backward()
        except ZeroDivisionError:
            assert step == 3
            continue
        finally:
            if hook is not None:
                hook.remove()
        optimizer.step()
    assert_same_on_all_ranks(model)
