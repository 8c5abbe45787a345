"""The drift guard in training: it finds what makes ranks drift apart, and is silent where they do not."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from oracle import WORLD
from torch import nn
from training import Net, assert_same_on_all_ranks, batches, distributed, loss_of, make, part

pytestmark = pytest.mark.once  # the guard compares what a reduction gives, however that came

STEPS = 64  # in which all parameters are looked at


@pytest.fixture
def said(rr):
    """The drift guard's warnings on each rank."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: WORLD.allgather([text for one in caught if "drifted" in (text := str(one.message))])


def sgd(model, **options):
    return distributed(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, **options)


def train(model, optimizer, steps, before_step=lambda step: None, after_step=lambda step: None):
    for step, (x, y) in enumerate(batches(steps, 4 * 3)):
        optimizer.zero_grad()
        loss_of(model, part(x), part(y)).backward()
        before_step(step)
        optimizer.step()
        after_step(step)


@pytest.fixture
def _several(size):
    if size == 1:
        pytest.skip("one rank agrees with itself")


several = pytest.mark.usefixtures("_several")


@several
def test_a_missing_broadcast(rr, rank, said):
    model = make(lambda: Net(sparse=False), seed=rank)
    train(model, sgd(model), 1)
    assert "before the first step: 'words.weight' differs" in said()[0][0]
    assert "broadcast_parameters()" in said()[0][0]


@several
def test_a_layer_that_is_made_anew_on_each_rank(rr, rank, said):
    model = make(Net)
    rr.broadcast_parameters(model.state_dict(), 0)
    model.unused = make(lambda: nn.Linear(3, 3), seed=rank)  # no gradient ever comes for it
    train(model, sgd(model), 1)
    assert "before the first step: 'unused.weight' differs" in said()[0][0]


@several
def test_gradients_that_one_rank_edits(rr, rank, size, said):
    model = make(Net)

    def edit(step):
        if step == 5 and rank == size - 1:
            model.after.weight.grad[0] = 0

    train(model, sgd(model), STEPS + 6, before_step=edit)
    assert "'after.weight' differs" in said()[0][0]


@several
def test_weights_that_one_rank_edits(rr, rank, size, said):
    model = make(Net)

    def edit(step):
        if step == 5 and rank == size - 1:
            with torch.no_grad():
                model.before.bias.clamp_(min=0)

    train(model, sgd(model), STEPS + 6, after_step=edit)
    assert "'before.bias' differs" in said()[0][0]


@several
def test_a_checkpoint_that_one_rank_loads(rr, rank, size, said):
    model = make(Net)
    checkpoint = copy.deepcopy(model.state_dict())

    def load(step):
        if step == 5 and rank == size - 1:
            model.load_state_dict(checkpoint)

    train(model, sgd(model), STEPS + 6, after_step=load)
    text = said()[0][0]
    assert "since step 6 at the latest" in text or "since step 7 at the latest" in text
    assert "more differ" in text


@several
@pytest.mark.parametrize("what", ["a sparse one", "a frozen one"])
def test_parameters_that_no_bucket_has(rr, rank, said, what):
    model = make(Net)
    model.twice.weight.requires_grad_(what != "a frozen one")
    optimizer = sgd(model)
    name = "words.weight" if what == "a sparse one" else "twice.weight"

    def edit(step):
        if step == 5 and rank == 0:
            with torch.no_grad():
                dict(model.named_parameters())[name][1] += 1

    train(model, optimizer, STEPS + 6, after_step=edit)
    assert f"{name!r} differs" in said()[0][0]


@several
def test_no_dense_gradient_at_all(rr, rank, said):
    model = make(lambda: nn.Embedding(20, 4, sparse=True))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(STEPS + 6):
        optimizer.zero_grad()
        model(torch.tensor([rank, step % 20])).sum().backward()
        optimizer.step()
        if step == 5 and rank == 0:
            model.weight.data[7] += 1
    assert "'weight' differs" in said()[0][0]


@several
def test_an_error(rr, rank, monkeypatch):
    from ringreduce._gradients import drift

    monkeypatch.setattr(drift._core, "setting_texts", lambda: [("RINGREDUCE_DRIFT", "error")])
    model = make(Net, seed=rank)
    optimizer = sgd(model)
    with pytest.raises(rr.DriftError) as caught:
        train(model, optimizer, 1)
    assert len(set(rr.allgather_object(str(caught.value)))) == 1
    rr.broadcast_parameters(model.state_dict(), 0)
    train(model, optimizer, STEPS)
    assert_same_on_all_ranks(model)


# Programs that are right


def plain(rr, model):
    train(model, sgd(model), STEPS + 6)


def wrapped_before_the_broadcast(rr, model):
    model.load_state_dict(make(Net, seed=rr.rank()).state_dict())
    optimizer = sgd(model)
    rr.broadcast_parameters(model.state_dict(), 0)
    rr.broadcast_optimizer_state(optimizer, 0)
    train(model, optimizer, STEPS)


def scaled(rr, model):
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=8)
    for step, (x, y) in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        loss = loss_of(model, part(x), part(y))
        scaler.scale(loss * torch.inf if step % 10 == 3 and rr.rank() == 0 else loss).backward()
        scaler.step(optimizer)
        scaler.update()


def sharpness_aware(rr, model):
    """Each rank climbs by its own gradient, and the second pass is reduced."""
    optimizer = sgd(model)
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        with optimizer.no_sync():
            loss_of(model, part(x), part(y)).backward()
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p += 0.05 * p.grad
        optimizer.zero_grad()
        loss_of(model, part(x), part(y)).backward()
        with torch.no_grad():
            for p, before in zip(model.parameters(), kept, strict=True):
                p.copy_(before)
        optimizer.step()


def in_passes(rr, model):
    optimizer = sgd(model, backward_passes_per_step=3)
    for step in range(STEPS):
        optimizer.zero_grad()
        for x, y in batches(3, seed=step):
            loss_of(model, part(x), part(y)).backward()
        optimizer.step()


def thawed(rr, model):
    model.after.requires_grad_(False)
    optimizer = sgd(model)
    train(model, optimizer, 10)
    model.after.requires_grad_(True)
    model.before.requires_grad_(False)
    train(model, optimizer, STEPS)


def grown(rr, model):
    rest = [p for name, p in model.named_parameters() if not name.startswith("after")]
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(rest, lr=0.1))
    train(model, optimizer, 10)
    optimizer.add_param_group({"params": list(model.after.parameters()), "lr": 0.05})
    train(model, optimizer, STEPS)


def converted(rr, model):
    optimizer = sgd(model)
    train(model, optimizer, 10)
    model.double()
    optimizer.state.clear()
    train(model, optimizer, STEPS)


def with_16_bits_on_the_way(rr, model):
    train(model, sgd(model, compression=rr.Compression.bf16), STEPS)


def summed(rr, model):
    train(model, sgd(model, op=rr.Sum), STEPS)


def predivided(rr, model):
    train(model, sgd(model, gradient_predivide_factor=float(rr.size())), STEPS)


PROGRAMS = [
    plain, wrapped_before_the_broadcast, scaled, sharpness_aware, in_passes, thawed, grown, converted,
    *(pytest.param(one, marks=pytest.mark.thorough) for one in (with_16_bits_on_the_way, summed, predivided)),
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_it_is_silent_where_all_is_right(rr, said, program):
    model = make(lambda: Net(sparse=program is not scaled and program is not sharpness_aware))
    program(rr, model)
    assert said() == [[]] * rr.size()
    assert_same_on_all_ranks(model)


def test_it_is_silent_in_a_process_set(rr, rank, size, said):
    sets = [rr.add_process_set([r]) for r in range(size)] if size > 1 else []
    try:
        model = make(Net, seed=rank)
        optimizer = sgd(model, process_set=sets[rank]) if sets else sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.zeros(2, 4, dtype=torch.int64)).sum().backward()
            optimizer.step()
        assert said() == [[]] * size
    finally:
        for process_set in sets:
            rr.remove_process_set(process_set)
