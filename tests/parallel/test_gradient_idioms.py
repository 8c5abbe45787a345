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

pytestmark = pytest.mark.once  # about torch's side of the optimizer


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


class Failing(torch.autograd.Function):
    """Raises in its backward while `now`."""

    now = False

    @staticmethod
    def forward(_ctx, x):
        return x.clone()

    @staticmethod
    def backward(_ctx, gradient):
        if Failing.now:
            raise ValueError("out of luck")
        return gradient


def failing_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Fails between the layers."""
    return model[2](Failing.apply(model[1](model[0](x)))).square().mean()


def test_one_failed_pass_over_gradients_that_are_never_cleared(rank, size):
    """What was delivered before is put back, which is no write of the program's."""
    model = mlp()
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(6):
        Failing.now = step == 3 and rank == size - 1
        try:
            failing_loss(model, part(inputs(step))).backward()
            assert step != 3
        except (ValueError, rr.RingreduceError):
            assert step == 3
        Failing.now = False
        optimizer.step()
    assert_same_on_all_ranks(model)


@pytest.mark.parametrize("order", [(2, 0), (0, 2)])
def test_a_pass_that_fails_between_two_optimizers(rank, size, order):
    """The first layer's gradients have not come on the rank that fails; the peers of its optimizer hear of it."""
    model = mlp()
    optimizers = [distributed(torch.optim.SGD(model[at].parameters(), lr=0.1), model[at]) for at in order]
    for step in range(6):
        Failing.now = step in (0, 3) and rank == size - 1
        try:
            failing_loss(model, part(inputs(step))).backward()
            assert step not in (0, 3)
            for optimizer in optimizers:
                optimizer.step()
        except (ValueError, rr.RingreduceError):
            assert step in (0, 3)
        Failing.now = False
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert_same_on_all_ranks(model)


def test_a_parameter_that_gets_no_gradient_keeps_its_last_one_for_another_step():
    def train(model, wrap, share):
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
        loss_of(model, share(inputs(0))).backward()
        optimizer.step()
        loss_of(model, share(inputs(1))).backward(inputs=list(model[2].parameters()))
        optimizer.step()

    trained(train)


def test_a_sparse_gradient_that_comes_on_top_of_a_dense_one_is_dense():
    def train(model, wrap, share):
        words = torch.nn.Embedding.from_pretrained(torch.ones(5, 2), freeze=False, sparse=True)
        model[2].words = words
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
        for step in range(3):
            words.weight.grad = torch.zeros(5, 2)
            (words(torch.tensor([1, 3])).square().mean() + loss_of(model, share(inputs(step)))).backward()
            assert not words.weight.grad.is_sparse
            optimizer.step()

    trained(train)


def test_an_optimizer_whose_process_set_has_gone_is_no_trouble_to_others(size):
    if size < 2:
        pytest.skip("needs 2 ranks")
    kept = []
    for again in range(2):
        chosen = rr.add_process_set(range(size - 1))
        kept.append(distributed(torch.optim.SGD((old := mlp()).parameters(), lr=0.1), old, process_set=chosen))
        rr.remove_process_set(chosen)
        model = mlp()
        optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
        loss_of(model, part(inputs(again))).backward()
        optimizer.step()
        assert_same_on_all_ranks(model)
