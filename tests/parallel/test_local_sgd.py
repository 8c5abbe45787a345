"""LocalSGD: parameters are averaged every few steps, and nothing else happens."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor, nn
from training import assert_same_on_all_ranks

import ringreduce as rr

MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
}


def mlp() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(100 * step + rank))


def local(model: nn.Module, maker: str = "sgd", period: int = 3, **options: object) -> torch.optim.Optimizer:
    named = model.named_parameters()
    return rr.DistributedOptimizer(MAKERS[maker](model), named, exchange=rr.LocalSGD(period), **options)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    optimizer.zero_grad()
    model(batch(step, rank)).square().sum().backward()
    optimizer.step()


def average(models: list[nn.Module], without: Collection[str] = ()) -> None:
    with torch.no_grad():
        for name in dict(models[0].named_parameters()).keys() - set(without):
            parameters = [model.get_parameter(name) for model in models]
            mean = torch.stack(parameters).mean(0)
            for parameter in parameters:
                parameter.copy_(mean)


def assert_equal(model: nn.Module, expected: nn.Module, exact: bool = False) -> None:
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class Simulated:
    """All ranks in one process."""

    def __init__(self, size: int, maker: str = "sgd") -> None:
        self.models = [mlp() for _ in range(size)]
        self.optimizers = [MAKERS[maker](model) for model in self.models]

    def train(self, step: int) -> None:
        for rank, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            train(model, optimizer, step, rank)


@pytest.mark.smoke
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("period", [1, 3])
def test_like_all_ranks_in_one_process(rank, size, maker, period):
    model, simulated = mlp(), Simulated(size, maker)
    optimizer = local(model, maker, period)
    for step in range(7):
        train(model, optimizer, step, rank)
        simulated.train(step)
        if (step + 1) % period == 0:
            average(simulated.models)
            assert_same_on_all_ranks(model)
        elif size > 1:
            everyone = rr.allgather(model[0].weight.detach().reshape(1, -1))
            assert not torch.equal(everyone[0], everyone[1]), "ranks go their own ways between two averages"
        assert_equal(model, simulated.models[rank], exact=size == 1)


def test_gradients_are_this_ranks_own(rank):
    """Nothing is hooked, whatever the program does with gradients, and closures are left alone."""
    model, plain = mlp(), mlp()
    optimizer = local(model, period=100)
    own = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    for step in range(3):
        for one, its in ((model, optimizer), (plain, own)):
            its.zero_grad()
            one(batch(step, rank)).sum().backward()
            one(batch(step + 10, rank)).sum().backward()
            nn.utils.clip_grad_norm_(one.parameters(), 0.5)

            def closure(one: nn.Module = one) -> Tensor:
                return one(torch.ones(6)).sum()

            its.loss = its.step(closure)
        assert torch.equal(optimizer.loss, own.loss)
        assert_equal(model, plain, exact=True)


def test_synchronize_averages_at_once(rank, size):
    model, simulated = mlp(), Simulated(size)
    optimizer = local(model)
    for step in range(5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step after synchronize() is no mistake here
            train(model, optimizer, step, rank)
        simulated.train(step)
        if step in (1, 2):
            if step == 1:
                optimizer.synchronize()  # the average after step 3 comes nevertheless
            average(simulated.models)
            assert_same_on_all_ranks(model)
        assert_equal(model, simulated.models[rank], exact=size == 1)


def test_first_gradients_then_parameters(rank, size):
    """Post-local SGD: the plain optimizer is wrapped twice, and its state goes on."""
    model, simulated = mlp(), Simulated(size)
    plain = MAKERS["sgd"](model)
    optimizer = rr.DistributedOptimizer(plain, model.named_parameters())
    for step in range(7):
        if step == 3:
            before, optimizer = (
                optimizer,
                rr.DistributedOptimizer(plain, model.named_parameters(), exchange=rr.LocalSGD(2)),
            )
            with pytest.raises(rr.RingreduceError, match="newer one"):
                before.step()
        train(model, optimizer, step, rank)
        if step < 3:
            for one, its in zip(simulated.models, simulated.optimizers, strict=True):
                its.zero_grad()
                (sum(one(batch(step, r)).square().sum() for r in range(size)) / size).backward()
                its.step()
        else:
            simulated.train(step)
            if step in (4, 6):
                average(simulated.models)
        assert_equal(model, simulated.models[rank])


def test_frozen_parameters_are_not_averaged(rank, size):
    """Whatever a rank has in them. But one that was trained before it was frozen is averaged once more."""
    model, simulated = mlp(), Simulated(size)
    for r, one in [(rank, model), *enumerate(simulated.models)]:
        one[0].bias.requires_grad = False
        one[0].bias += 0.1 * r  # little, so that training stays stable and rounding small
    optimizer = local(model)
    for step in range(6):
        for r, one in [(rank, model), *enumerate(simulated.models)]:
            one[2].weight.requires_grad = step == 0
            if step == 3:
                one[2].weight += 0.1 * r
        train(model, optimizer, step, rank)
        simulated.train(step)
        if step % 3 == 2:
            average(simulated.models, without={"0.bias"} if step == 2 else {"0.bias", "2.weight"})
        assert_equal(model, simulated.models[rank])


def test_parameters_come_and_go(rank):
    model, more = mlp(), nn.Linear(6, 3)
    with torch.no_grad():
        more.weight.fill_(rank)
    optimizer = local(model, period=2)
    train(model, optimizer, 0, rank)
    optimizer.add_param_group({"params": list(more.parameters())})
    optimizer.param_groups[0]["params"][0] = exchanged = nn.Parameter(torch.full((8, 6), float(rank)))
    train(model, optimizer, 1, rank)
    assert_same_on_all_ranks(nn.ParameterList([*list(model.parameters())[1:], exchanged, *more.parameters()]))


def test_layouts_and_dtypes(rank, size):
    model = nn.ModuleList([nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(2, 2).double()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) + rank)
    optimizer = local(model, period=1)
    optimizer.step()
    for parameter in model.parameters():
        expected = torch.arange(parameter.numel(), dtype=parameter.dtype).view(parameter.shape) + (size - 1) / 2
        assert torch.allclose(parameter, expected)


def test_a_copy_has_an_average_of_its_own(rank):
    model = mlp()
    optimizer = local(model, period=2)
    train(model, optimizer, 0, rank)
    model, optimizer = copy.deepcopy((model, optimizer))
    for step in (1, 2):
        train(model, optimizer, step, rank)
    assert_same_on_all_ranks(model)


def test_over_a_process_set(rank, size):
    """Those outside train on their own."""
    if size < 3:
        pytest.skip("needs 3 ranks")
    some = rr.add_process_set([0, size - 1])
    model, simulated = mlp(), Simulated(size)
    optimizer = local(model, period=1, process_set=some)
    train(model, optimizer, 0, rank)
    simulated.train(0)
    average([simulated.models[0], simulated.models[-1]])
    assert_equal(model, simulated.models[rank])
    rr.remove_process_set(some)


@pytest.mark.parametrize("what", ["period", "shape"])
def test_what_must_be_the_same(rank, size, what):
    if size == 1:
        pytest.skip("needs 2 ranks")
    wide = 3 + (what == "shape" and rank == 1)
    model = nn.Linear(6, wide)
    optimizer = local(model, period=2 if what == "period" and rank == 1 else 1)
    if what == "period" and rank == 1:
        train(model, optimizer, 0, rank)
    with pytest.raises(rr.RingreduceError, match="the period" if what == "period" else r"weight.*\(4, 6\)"):
        train(model, optimizer, 1, rank)


def test_arguments():
    for period in (0, -1):
        with pytest.raises(ValueError, match="period"):
            rr.LocalSGD(period)
    with pytest.raises(TypeError, match="period"):
        rr.LocalSGD(1.5)
    unsuitable = {
        "op": rr.Sum, "compression": rr.Compression.fp16, "num_groups": 2, "sparse_as_dense": True,
        "gradient_predivide_factor": 2.0,
    }  # fmt: skip
    for option, value in unsuitable.items():
        with pytest.raises(ValueError, match=option):
            local(mlp(), **{option: value})


def test_the_ranks_compare_what_they_average_each_time(rank, size):
    """Also after an average of nothing, and when one rank has thawed another layer since."""
    if size == 1:
        return
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    named = [(f"{rank % 2}.{name}", parameter) for name, parameter in model.named_parameters()]
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), named, exchange=rr.LocalSGD(1))
    optimizer.synchronize()  # nothing has been trained
    model(torch.ones(2, 3)).sum().backward()
    with pytest.raises(rr.RingreduceError, match="average different parameters"):
        optimizer.step()
