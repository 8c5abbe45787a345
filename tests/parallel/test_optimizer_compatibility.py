"""What works on a plain optimizer works on a wrapped one."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import (
    CLASSES,
    Net,
    assert_identical,
    assert_same_on_all_ranks,
    batches,
    distributed,
    loss_of,
    make,
    part,
    relative_error,
)

import ringreduce as rr
from ringreduce._runtime import running

pytestmark = pytest.mark.once  # about torch's side of the optimizer


def trained(steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = make(lambda: Net(sparse=False))
    optimizer = distributed(torch.optim.Adam(model.parameters(), lr=0.01), model)
    train(model, optimizer, steps)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 7) -> None:
    for x, y in batches(steps, seed=seed):
        optimizer.zero_grad()
        loss_of(model, part(x), part(y)).backward()
        optimizer.step()


def test_it_is_what_was_wrapped():
    model = make()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = distributed(plain, model)
    assert isinstance(wrapped, torch.optim.SGD)
    assert type(wrapped).__name__ == "SGD"
    assert wrapped.state is plain.state
    assert wrapped.param_groups is plain.param_groups
    assert wrapped.defaults is plain.defaults
    assert repr(wrapped) == repr(plain)


def test_pickle_gives_a_plain_optimizer():
    _, optimizer = trained()
    loaded = pickle.loads(pickle.dumps(optimizer))
    assert type(loaded) is torch.optim.Adam
    assert loaded.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    saved = io.BytesIO()
    torch.save(optimizer, saved)
    saved.seek(0)
    assert type(torch.load(saved, weights_only=False)) is torch.optim.Adam


def test_deepcopy_trains_the_copied_model():
    model, optimizer = trained()
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model_copy, optimizer_copy, 2, seed=11)
    train(model, optimizer, 2, seed=11)
    assert_identical(model_copy, model)
    assert_same_on_all_ranks(model_copy)


def test_state_dict_resumes():
    model, optimizer = trained()
    state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, 2, seed=11)
    resumed = make(lambda: Net(sparse=False))
    resumed.load_state_dict(weights)
    other = distributed(torch.optim.Adam(resumed.parameters(), lr=1.0), resumed)
    other.load_state_dict(state)
    train(resumed, other, 2, seed=11)
    assert_identical(resumed, model)


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_schedulers(scheduler_first):
    model = make(lambda: Net(sparse=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if scheduler_first:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer = distributed(optimizer, model)
    if not scheduler_first:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, (x, y) in enumerate(batches(3)):
            assert optimizer.param_groups[0]["lr"] == 0.5**step
            optimizer.zero_grad()
            loss_of(model, part(x), part(y)).backward()
            optimizer.step()
            scheduler.step()


def test_step_hooks():
    model, optimizer = trained()
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, 1)
    assert calls == ["before", "after"]


def test_closures():
    model, optimizer = trained()
    reference = copy.deepcopy(model)
    plain = torch.optim.Adam(reference.parameters(), lr=0.01)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for x, y in batches(3):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model, part(x), part(y))
            loss.backward()
            return loss

        assert optimizer.step(closure).ndim == 0
        plain.zero_grad()
        loss_of(reference, x, y).backward()
        plain.step()
    assert relative_error(model, reference) < 1e-4
    assert_same_on_all_ranks(model)


def test_grad_scaler(rank, size):
    """A gradient that overflows on one rank is skipped by all, and training goes on."""
    model = make(lambda: Net(sparse=False))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model, backward_passes_per_step=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step, (x, y) in enumerate(batches(4)):
        before = model.after.weight.detach().clone()
        optimizer.zero_grad()
        for _ in range(2):
            loss = scaler.scale(loss_of(model, part(x), part(y)))
            if step == 1 and rank == size - 1:
                loss = loss * float("inf")
            loss.backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, model.after.weight) == (step == 1)
        assert scaler.get_scale() == (512.0 if step else 1024.0)
    assert_same_on_all_ranks(model)


class Checkpointed(nn.Module):
    """Every layer under a checkpoint (of which one is nested), one layer unused."""

    def __init__(self, reentrant: bool, shared: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        if shared:
            self.layers[2] = self.layers[0]
        self.unused = nn.Linear(8, 8)
        self.out = nn.Linear(8, CLASSES)
        self.reentrant = reentrant

    def run(self, function, h):
        return checkpoint(function, h, use_reentrant=self.reentrant)

    def forward(self, x):
        h = self.embed(x).mean(1)
        h = self.run(lambda h: torch.tanh(self.layers[0](h)), h)
        h = self.run(lambda h: self.run(lambda g: torch.tanh(self.layers[1](g)), h) * 2, h)
        return self.run(lambda h: self.out(torch.tanh(self.layers[2](h))), h)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpointing(reentrant, frozen, shared, passes):
    """With a frozen embedding all gradients come in inner backward passes."""

    def build():
        model = Checkpointed(reentrant, shared)
        model.embed.weight.requires_grad_(not frozen)
        if frozen:  # reentrant checkpoints need an input that requires grad
            model.embed.register_forward_hook(lambda _m, _i, output: output.requires_grad_())
        return model

    reference, model = make(build), make(build)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    optimizer = distributed(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, backward_passes_per_step=passes
    )
    for x, y in batches(4):
        for m, o, share in ((reference, plain, lambda t: t), (model, optimizer, part)):
            o.zero_grad()
            for _ in range(passes):
                loss_of(m, share(x), share(y)).backward()
            nn.utils.clip_grad_norm_(m.parameters(), 0.1)
            o.step()
    assert relative_error(model, reference) < 1e-5
    assert model.unused.weight.grad is None
    assert_same_on_all_ranks(model)


def test_gradient_penalty():
    """A second-order gradient: autograd.grad inside the forward pass."""

    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    reference, model = make(build), make(build)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    for _ in range(3):
        for m, o, share in ((reference, plain, lambda t: t), (model, optimizer, part)):
            o.zero_grad()
            x = share(data).clone().requires_grad_()
            (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
            ((slope.norm(dim=1) - 1) ** 2).mean().backward()
            o.step()
    assert relative_error(model, reference) < 1e-5


def test_an_optimizer_that_goes_leaves_its_parameters_usable(size):
    model, optimizer = trained()
    del optimizer
    model.zero_grad()
    x, y = next(batches(1))
    loss_of(model, part(x), part(y)).backward()
    again = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    again.zero_grad()
    train(model, again, 2)
    assert_same_on_all_ranks(model)


def test_an_optimizer_that_goes_gives_its_buckets_back():
    gc.collect()
    engine = running.require().engine
    slots = lambda: engine.offer_channel().partition(":")[2].count("1")  # noqa: E731
    before = slots()
    model, optimizer = trained()
    assert slots() == before + 1
    del model, optimizer
    gc.collect()
    assert slots() == before


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["sgd", "adam", "lr tensor"])
def test_broadcast_optimizer_state(rank, size, kind):
    """Ranks without state get the root's; the root's parameters and state stay."""
    model = make(lambda: Net(sparse=False))
    root = size - 1
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (rank + 1), momentum=0.9)
    else:
        lr = torch.tensor(0.1 * (rank + 1)) if kind == "lr tensor" else 0.1 * (rank + 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.5, 0.9 + rank / 100))
    if rank == root:
        x, y = next(batches(1))
        loss_of(model, x, y).backward()
        optimizer.step()
    weights = copy.deepcopy(model.state_dict())
    optimizer = distributed(optimizer, model)
    rr.broadcast_optimizer_state(optimizer, root_rank=root)
    states = rr.allgather_object(optimizer.state_dict())
    for state in states:
        torch.testing.assert_close(state, states[root], rtol=0, atol=0)
    if kind == "adam":
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.9 + root / 100)
        assert isinstance(optimizer.param_groups[0]["betas"], tuple)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * size)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), "parameters are not touched"
    rr.broadcast_parameters(model.state_dict(), root_rank=root)
    train(model, optimizer, 2)
    assert_same_on_all_ranks(model)


def test_broadcast_of_no_state(rank):
    """The root has none yet: the others lose theirs."""
    model = make(lambda: Net(sparse=False))
    optimizer = torch.optim.Adam(model.parameters())
    if rank:
        x, y = next(batches(1))
        loss_of(model, x, y).backward()
        optimizer.step()
    rr.broadcast_optimizer_state(optimizer, root_rank=0)
    assert not optimizer.state


def test_lbfgs_is_refused():
    model = make(lambda: Net(sparse=False))
    with pytest.raises(ValueError, match="LBFGS"):
        rr.broadcast_optimizer_state(torch.optim.LBFGS(model.parameters()), root_rank=0)


@pytest.mark.parametrize("form", ["state_dict", "list"])
def test_broadcast_parameters(rank, size, form):
    model = make(seed=rank)
    params = model.state_dict() if form == "state_dict" else list(model.named_parameters())
    rr.broadcast_parameters(params, root_rank=size - 1)
    assert_identical(model, make(seed=size - 1))


@pytest.mark.parametrize("params", [3, None, [torch.ones(1)], {"a": "text"}, "generator"], ids=str)
def test_broadcast_of_no_parameters(params):
    with pytest.raises(ValueError, match="params"):
        rr.broadcast_parameters(iter([]) if params == "generator" else params, root_rank=0)
