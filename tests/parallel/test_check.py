"""`check`: what all ranks hold, compared at once and in full."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from training import make

pytestmark = pytest.mark.once  # made of collectives that have tests of their own


def trained(optimizer=torch.optim.AdamW):
    """A model and an optimizer with state, the same on all ranks."""
    model = make(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = torch.randn(6, 2, 4, 4)
    optimizer = optimizer(model.parameters(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.LBFGS], ids=lambda o: o.__name__)
def test_the_same_everywhere(rr, optimizer):
    if optimizer is torch.optim.LBFGS:
        model, _ = trained()
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.LBFGS([parameter])
        optimizer.step(lambda: (parameter.grad is None and parameter.square().sum().backward()) or 1.0)
    else:
        model, optimizer = trained(optimizer)
    assert rr.check(model, optimizer) is None
    assert rr.check(model.state_dict()) is None
    assert rr.check(optimizer=optimizer) is None
    assert rr.check() is None


def nudge(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] += 1.5 if tensor.is_floating_point() else 2


CHANGES = {
    r"'3\.weight' differs .*\(1 of 48 elements, by up to 1.5\)": lambda m, o: nudge(m[3].weight),
    r"'buffer 1\.running_mean' differs .*\(1 of 4 elements": lambda m, o: nudge(m[1].running_mean),
    r"'buffer 1\.num_batches_tracked' differs .*\(1 of 1 elements": lambda m, o: nudge(m[1].num_batches_tracked),
    r"\"state of 3\.bias\['exp_avg'\]\" differs": lambda m, o: nudge(o.state[m[3].bias]["exp_avg"]),
    r"\"state of 0\.bias\['step'\]\" differs": lambda m, o: nudge(o.state[m[0].bias]["step"]),
    r"\"param_groups\[0\]\['lr'\]\" is ": lambda m, o: o.param_groups[0].update(lr=0.5),
    r"\"param_groups\[0\]\['betas'\]\[1\]\" is ": lambda m, o: o.param_groups[0].update(betas=(0.9, 0.5)),
    r"'requires_grad of 0\.weight' is ": lambda m, o: m[0].weight.requires_grad_(False),
}


@pytest.mark.parametrize("text", CHANGES)
def test_one_rank_differs(rr, rank, size, text):
    model, optimizer = trained()
    if rank == size - 1:
        CHANGES[text](model, optimizer)
    if size == 1:
        return rr.check(model, optimizer)
    with pytest.raises(rr.DriftError, match=f"check: the ranks differ: {text}") as caught:
        rr.check(model, optimizer)
    assert len(set(rr.allgather_object(str(caught.value)))) == 1
    return None


STRUCTURES = {
    r"'4\.weight' is absent on rank": lambda m, o: m.append(nn.Linear(3, 3)),
    r"'3\.bias' is \(3,\) torch.float32 on rank.*torch.float64": lambda m, o: m[3].double(),
    "state of 3.*exp_avg.*absent": lambda m, o: o.state.pop(m[3].weight),
    r"param_groups\[1\]": lambda m, o: o.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
}


@pytest.mark.parametrize("text", STRUCTURES)
def test_one_rank_holds_other_things(rr, rank, size, text):
    model, optimizer = trained()
    if rank == size - 1:
        STRUCTURES[text](model, optimizer)
    if size == 1:
        return rr.check(model, optimizer)
    with pytest.raises(rr.RingreduceError, match=f"(?s)check: the ranks hold different things: .*{text}") as caught:
        rr.check(model, optimizer)
    assert len(set(rr.allgather_object(str(caught.value)))) == 1
    return None


def test_all_that_differs_is_said(rr, rank, size):
    tensors = {f"p{i:02}": torch.full((4,), float(i if rank or i % 2 else -1)) for i in range(40)}
    if size == 1:
        return rr.check(tensors)
    with pytest.raises(rr.DriftError) as caught:
        rr.check(tensors)
    text = str(caught.value)
    assert [f"'p{i:02}'" in text for i in range(10)] == [i % 2 == 0 for i in range(10)]
    assert "; and more (see docs" in text
    return None


def test_rounding_is_a_warning(rr, rank, size):
    values = torch.linspace(1, 2, 100)
    if rank == size - 1 and size > 1:
        values = torch.nextafter(values, torch.tensor(3.0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rr.check({"p": values})
    assert len(caught) == (rank == 0 and size > 1)
    assert all("no more than rounding: 'p' differs" in str(warning.message) for warning in caught)


def test_the_layout_in_memory_does_not_count(rr, rank):
    values = torch.arange(120.0).view(2, 3, 4, 5)
    rr.check({"p": values.contiguous(memory_format=torch.channels_last) if rank else values})


def test_a_process_set(rr, rank, size):
    if size < 3:
        pytest.skip("that set is the world")
    process_set = rr.add_process_set(range(1, size))
    try:
        if rank:
            rr.check({"p": torch.ones(3)}, process_set=process_set)
            with pytest.raises(rr.DriftError, match="rank 1 and rank 2" if size == 3 else "rank 2"):
                rr.check({"p": torch.full((3,), float(rank == 2))}, process_set=process_set)
    finally:
        rr.remove_process_set(process_set)


@pytest.mark.parametrize(("arguments", "name"), [((17,), "model"), ((None, nn.Linear(1, 1)), "optimizer")])
def test_something_else(rr, arguments, name):
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        rr.check(*arguments)
