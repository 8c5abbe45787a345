"""Several ranks on a part of the batch each train to what one process does on the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from training import (
    Net,
    assert_identical,
    assert_same_on_all_ranks,
    batches,
    dense,
    distributed,
    loss_of,
    make,
    part,
    relative_error,
)

import ringreduce as rr

Optimizers = list[torch.optim.Optimizer]


def sgd(model: nn.Module) -> Optimizers:
    return [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4 if not model.words.sparse else 0)
    ]


def adamw(model: nn.Module) -> Optimizers:
    """AdamW refuses sparse gradients: the embedding gets SparseAdam."""
    if not model.words.sparse:
        return [torch.optim.AdamW(model.parameters(), lr=0.01)]
    rest = [p for name, p in model.named_parameters() if name != "words.weight"]
    return [torch.optim.AdamW(rest, lr=0.01), torch.optim.SparseAdam([model.words.weight], lr=0.01)]


def train(model: nn.Module, optimizers: Optimizers, passes: int, share: Callable, steps: int = 8) -> None:
    """Gradient accumulation over `passes`, then clipping, then a step."""
    data = list(batches(steps * passes))
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for x, y in data[step * passes : (step + 1) * passes]:
            (loss_of(model, share(x), share(y)) / passes).backward()
        norm = nn.utils.clip_grad_norm_(dense(model), 0.05)
        assert norm > 0.05, "clipping had nothing to do"
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.quick
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize(("optimizers", "bound"), [(sgd, 1e-5), (adamw, 1e-4)], ids=["SGD", "AdamW"])
def test_as_one_process_on_the_whole_batch(size, optimizers, bound, passes, sparse):
    reference, model = make(lambda: Net(sparse)), make(lambda: Net(sparse))
    train(reference, optimizers(reference), passes, lambda x: x)
    wrapped = [distributed(o, model, backward_passes_per_step=passes) for o in optimizers(model)]
    train(model, wrapped, passes, part)
    assert relative_error(model, reference) <= bound
    assert_same_on_all_ranks(model)
    if size == 1:
        assert_identical(model, reference)
    assert model.unused.weight.grad is None
    assert model.words.weight.grad.is_sparse == sparse


@pytest.mark.parametrize("optimizers", [sgd, adamw], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_set_of_one_gives_the_bits_of_plain_torch(rank, size, optimizers, passes):
    sets = [rr.add_process_set([r]) for r in range(size)] if size > 1 else [rr.global_process_set]
    reference, model = make(), make()
    train(reference, optimizers(reference), passes, lambda x: x)
    wrapped = [
        distributed(o, model, backward_passes_per_step=passes, process_set=sets[rank]) for o in optimizers(model)
    ]
    train(model, wrapped, passes, lambda x: x)
    assert_identical(model, reference)
    for process_set in sets:
        rr.remove_process_set(process_set)


def test_runs_repeat_to_the_bit():
    models = []
    for _ in range(2):
        models.append(make())
        train(models[-1], [distributed(o, models[-1]) for o in sgd(models[-1])], 1, part)
    assert_identical(models[0], models[1])


@pytest.mark.smoke
def test_one_step_of_plain_sgd(size):
    """A gradient known exactly: the mean of integers, at any number of ranks."""
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=1.0), model)
    model(torch.full((1, 4), float(rr.rank() * 2))).sum().backward()
    assert model.weight.grad.tolist() == [[size - 1.0] * 4]
    optimizer.step()
    assert model.weight.tolist() == [[1.0 - size] * 4]
