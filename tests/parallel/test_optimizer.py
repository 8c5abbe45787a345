"""DistributedOptimizer: when gradients are reduced, and what they are then."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from training import CLASSES, WORDS, Net, assert_same_on_all_ranks, batches, distributed, loss_of, make, part

import ringreduce as rr


def weight_with_grad(model: nn.Linear, value: float) -> Tensor:
    """A loss whose gradient is `value` in each element of the weight."""
    return model.weight.sum() * value


def linear(optimizer_options: dict | None = None, **options: object) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), **(optimizer_options or {"lr": 0.5}))
    return model, distributed(optimizer, model, **options)


def values(grad: Tensor | None) -> list[float]:
    """The different values in a gradient."""
    assert grad is not None
    return sorted(set(grad.flatten().tolist()))


def mean(size: int) -> float:
    """Of the ranks' numbers."""
    return (size - 1) / 2


@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
def test_complete_when_backward_returns(rank, size, op):
    model, _optimizer = linear(op=op)
    for _ in range(3):
        model.zero_grad()
        weight_with_grad(model, rank).backward()
        assert values(model.weight.grad) == [mean(size) * (size if op == rr.Sum else 1)]


@pytest.mark.parametrize("op", [rr.Average, rr.Sum])
@pytest.mark.parametrize("clear", ["optimizer", "in place", "model", "not at all"])
def test_a_second_backward_reduces_what_it_added(rank, size, op, clear):
    model, optimizer = linear(op=op)
    unit = mean(size) * (size if op == rr.Sum else 1)
    total = 0.0
    for step in range(4):
        if clear == "optimizer":
            optimizer.zero_grad()
        elif clear == "in place":
            optimizer.zero_grad(set_to_none=False)
        elif clear == "model":
            model.zero_grad()
        total = total if clear == "not at all" else 0.0
        for factor in (1, 2, 4):
            weight_with_grad(model, rank * factor).backward()
            total += unit * factor
            assert values(model.weight.grad) == [total], (step, factor)
        optimizer.step()


def test_gradients_are_aliases_of_the_buckets(size):
    """In memory that the ranks share, each with a storage of its own; one rank alone has plain torch's."""
    model = make()
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for x, y in batches(2):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
    dense = [p.grad for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]
    assert len({g.untyped_storage()._cdata for g in dense}) == len(dense)
    if size > 1:
        plan = optimizer._ringreduce_exchange._step.planning.plan
        buckets = [(flat.data_ptr(), flat.data_ptr() + flat.nbytes) for flat in plan._memory.flat]
        assert all(any(begin <= g.data_ptr() < end for begin, end in buckets) for g in dense)
    for g in dense:
        g.detach_()  # no bucket's own tensor is handed out
    optimizer.zero_grad(set_to_none=False)
    assert all(g.count_nonzero() == 0 for g in dense)


def test_reductions_begin_before_backward_ends():
    model = nn.Sequential(*(nn.Linear(600, 600) for _ in range(3)))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    planning = optimizer._ringreduce_exchange._step.planning
    launched = []
    model[0].weight.register_post_accumulate_grad_hook(
        lambda _: launched.append(planning.plan.next if planning.plan else 0)
    )
    for _ in range(2):
        model(torch.ones(2, 600)).sum().backward()
    assert launched[0] == 0, "nothing may be launched before the ranks have agreed"
    assert launched[1] >= 1


def test_strides_are_those_of_the_parameter():
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 3, 5, 5)).sum().backward()
        assert model.weight.grad.stride() == model.weight.stride()
        optimizer.step()


def test_several_dtypes(rank, size):
    parameters = [
        nn.Parameter(torch.ones(5, dtype=t)) for t in (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
    ]
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(parameters, lr=1.0))
    for _ in range(2):
        optimizer.zero_grad()
        sum((p * (2 * rank)).sum().real.double() for p in parameters).backward()
        for p in parameters:
            assert p.grad.dtype == p.dtype
            assert set(p.grad.tolist()) == {size - 1}


def test_accumulation_sums_passes(rank, size):
    model, optimizer = linear(backward_passes_per_step=3)
    for _ in range(2):
        optimizer.zero_grad()
        for number in (1, 2, 3):
            weight_with_grad(model, rank * number).backward()
            expected = mean(size) * 6 if number == 3 else rank * sum(range(number + 1))
            assert values(model.weight.grad) == [expected]
        optimizer.step()


def test_a_shorter_last_group_is_reduced_by_step(rank, size):
    model, optimizer = linear({"lr": 1.0}, backward_passes_per_step=3)
    nn.init.zeros_(model.weight)
    for passes in (3, 2, 1, 3):
        optimizer.zero_grad()
        for _ in range(passes):
            weight_with_grad(model, rank).backward()
        optimizer.step()
        assert values(model.weight.grad) == [mean(size) * passes]
    assert values(model.weight) == [-mean(size) * 9]


def test_no_sync(rank, size):
    model, optimizer = linear()
    for last_under_no_sync in (False, True, False):
        optimizer.zero_grad()
        with optimizer.no_sync():
            weight_with_grad(model, rank).backward()
            weight_with_grad(model, rank).backward()
        assert values(model.weight.grad) == [2 * rank]
        if not last_under_no_sync:
            weight_with_grad(model, rank).backward()
            assert values(model.weight.grad) == [3 * mean(size)]
        optimizer.step()
        assert values(model.weight.grad) == [(2 if last_under_no_sync else 3) * mean(size)]


def test_no_sync_after_a_reduction(rank, size):
    """What was reduced is kept, and what comes after it is added when it is reduced itself."""
    model, optimizer = linear()
    weight_with_grad(model, rank).backward()
    with optimizer.no_sync():
        weight_with_grad(model, rank * 2).backward()
    optimizer.synchronize()
    assert values(model.weight.grad) == [3 * mean(size)]


def test_predivide_factor(rank, size):
    model, _optimizer = linear(gradient_predivide_factor=4.0)
    weight_with_grad(model, rank * 3).backward()
    assert values(model.weight.grad) == [pytest.approx(3 * mean(size))]


class Parts(nn.Module):
    """Parts of which a rank may use some."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(count))


def test_ranks_use_different_parts(rank, size):
    model = make(lambda: Parts(size + 1))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(4):
        optimizer.zero_grad()
        used = (rank + step) % size
        model.parts[used].bias.sum().backward()
        for number, layer in enumerate(model.parts):
            assert layer.weight.grad is None
            if number < size:
                assert values(layer.bias.grad) == [pytest.approx(1 / size)]
        assert model.parts[size].bias.grad is None
        optimizer.step()
    assert_same_on_all_ranks(model)


def test_a_part_that_is_used_later(rank, size):
    """Parameters that no rank has used take no room, until one does."""
    model = make(lambda: Parts(3))
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(5):
        optimizer.zero_grad()
        model.parts[0].bias.sum().backward()
        if step >= 2 and rank == size - 1:
            (model.parts[2].bias.sum() * size).backward()  # the others' second pass is without it
        else:
            model.parts[0].bias.sum().backward()
        optimizer.step()
        assert values(model.parts[0].bias.grad) == [pytest.approx(2.0 - (step >= 2) / size)]
        assert model.parts[1].bias.grad is None
        if step >= 2:
            assert values(model.parts[2].bias.grad) == [1.0]
    assert_same_on_all_ranks(model)


def test_a_rank_without_a_backward_pass(rank, size):
    model, optimizer = linear({"lr": 1.0})
    nn.init.zeros_(model.weight)
    for step in range(4):
        optimizer.zero_grad()
        if rank or step % 2:
            weight_with_grad(model, 1.0).backward()
        optimizer.step()
        if size > 1 or step % 2:
            assert values(model.weight.grad) == [1.0 if step % 2 else pytest.approx((size - 1) / size)]
        else:
            assert model.weight.grad is None
    assert_same_on_all_ranks(model)


def test_frozen_parameters_that_thaw(rank, size):
    model = make(lambda: Parts(2))
    model.parts[1].requires_grad_(False)
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(4):
        model.parts[1].requires_grad_(step >= 2)
        optimizer.zero_grad()
        sum(layer(torch.ones(1, 3)).sum() * rank for layer in model.parts).backward()
        assert values(model.parts[0].bias.grad) == [mean(size)]
        if step >= 2:
            assert values(model.parts[1].bias.grad) == [mean(size)]
        optimizer.step()
    assert_same_on_all_ranks(model)


def test_add_param_group(rank, size):
    model, optimizer = linear()
    weight_with_grad(model, rank).backward()
    more = nn.Linear(3, 2, bias=False)
    optimizer.add_param_group({"params": more.parameters(), "lr": 0.1})
    optimizer.zero_grad()
    (weight_with_grad(model, rank) + weight_with_grad(more, rank * 2)).backward()
    assert values(model.weight.grad) == [mean(size)]
    assert values(more.weight.grad) == [2 * mean(size)]


def test_autograd_grad_leaves_gradients_alone(rank, size):
    model, _optimizer = linear()
    weight_with_grad(model, rank).backward()
    (grad,) = torch.autograd.grad(weight_with_grad(model, 5.0), [model.weight])
    assert values(grad) == [5.0]
    assert values(model.weight.grad) == [mean(size)]
    weight_with_grad(model, rank).backward()
    assert values(model.weight.grad) == [2 * mean(size)]


def test_two_optimizers_of_a_gan(rank, size):
    """The generator's backward pass goes through the discriminator, whose gradients are then cleared."""
    torch.manual_seed(5)
    generator, critic = nn.Linear(2, 4), nn.Linear(4, 1)
    optimizers = [distributed(torch.optim.Adam(m.parameters(), lr=0.01), m) for m in (generator, critic)]
    for step in range(4):
        noise = torch.full((2, 2), float(rank + step))
        optimizers[1].zero_grad()
        (critic(torch.ones(2, 4)).mean() - critic(generator(noise).detach()).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        critic(generator(noise)).mean().backward()
        optimizers[0].step()
    assert_same_on_all_ranks(generator)
    assert_same_on_all_ranks(critic)


def test_optimizers_that_meet_in_one_backward_pass_in_another_order(rank, size):
    """Hooks of the two fire in an order that differs by rank; none waits for the other."""
    a, b = make(lambda: nn.Linear(3, 3)), make(lambda: nn.Linear(3, 3))
    optimizers = [distributed(torch.optim.SGD(m.parameters(), lr=0.1), m) for m in (a, b)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        first, second = (a, b) if rank % 2 else (b, a)
        second(first(torch.full((1, 3), float(rank)))).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_on_all_ranks(a)
    assert_same_on_all_ranks(b)


@pytest.mark.parametrize("sparse_as_dense", [False, True])
def test_sparse_gradients(rank, size, sparse_as_dense):
    """Each rank looks up its own row and a common one; one rank none at all."""
    words = nn.Embedding(WORDS, 2, sparse=True)
    optimizer = distributed(torch.optim.SGD(words.parameters(), lr=0.1), words, sparse_as_dense=sparse_as_dense)
    for _ in range(3):
        optimizer.zero_grad()
        if rank == 0 and size > 1:
            (words.weight.sum() * 0).detach()
        else:
            words(torch.tensor([rank, 20, 20])).sum().backward()
        optimizer.synchronize()
        grad = words.weight.grad
        assert grad.is_sparse != sparse_as_dense
        looking = range(1, size) if size > 1 else [0]
        expected = torch.zeros(WORDS, 2)
        expected[list(looking)] = 1 / size
        expected[20] = 2 * len(looking) / size
        torch.testing.assert_close(grad.to_dense(), expected)
        if not sparse_as_dense and size > 1:
            assert grad.is_coalesced()
            assert grad._nnz() == size
        with optimizer.skip_synchronize():
            optimizer.step()


def test_sparse_gradients_accumulate(rank, size):
    words = nn.Embedding(WORDS, 2, sparse=True)
    optimizer = distributed(torch.optim.SGD(words.parameters(), lr=0.1), words, op=rr.Sum)
    for _ in range(2):
        words(torch.tensor([rank])).sum().backward()
    expected = torch.zeros(WORDS, 2)
    expected[:size] = 2
    assert torch.equal(words.weight.grad.to_dense(), expected)
    with optimizer.no_sync():
        words(torch.tensor([rank])).sum().backward()
    optimizer.step()
    assert torch.equal(words.weight.grad.to_dense(), expected * 1.5)


def test_a_sparse_embedding_that_is_used_later(rank, size):
    model = make(Net)
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model)
    for step in range(3):
        optimizer.zero_grad()
        loss = model.after.bias.sum()
        if step:
            loss = loss + model.words(torch.tensor([rank])).sum()
        loss.backward()
        if step:
            assert model.words.weight.grad.is_sparse
            assert model.words.weight.grad.to_dense().sum().item() == pytest.approx(8)
        optimizer.step()
    assert_same_on_all_ranks(model)


def test_process_sets(rank, size):
    """Members train together; the others on their own."""
    if size < 2:
        pytest.skip("needs 2 ranks")
    members = list(range(1, size))
    process_set = rr.add_process_set(members)
    model, optimizer = linear(process_set=process_set)
    for _ in range(3):
        optimizer.zero_grad()
        weight_with_grad(model, rank).backward()
        assert values(model.weight.grad) == [sum(members) / len(members) if rank else 0]
        optimizer.step()
    rr.barrier()
    rr.remove_process_set(process_set)


@pytest.mark.parametrize("compression", [rr.Compression.fp16, rr.Compression.bf16])
def test_compression_applies_between_hosts_only(size, compression):
    model, optimizer = linear(compression=compression)
    fine = 1 + 2.0**-20
    several_hosts = size > rr.local_size()
    for _ in range(2):
        optimizer.zero_grad()
        weight_with_grad(model, fine).backward()
        assert model.weight.grad.dtype == torch.float32
        assert values(model.weight.grad) == [1.0 if several_hosts else pytest.approx(fine, rel=1e-7)]
        optimizer.step()


@pytest.mark.parametrize("groups", [{"num_groups": 3}, {"groups": 2}, {"groups": "lists"}], ids=str)
def test_groups_are_hints(size, groups):
    model = make(lambda: Net(sparse=False))
    if groups == {"groups": "lists"}:
        groups = {"groups": [list(model.before.parameters()), list(model.after.parameters())]}
    optimizer = distributed(torch.optim.SGD(model.parameters(), lr=0.1), model, **groups)
    for x, y in batches(2):
        optimizer.zero_grad()
        loss_of(model, part(x), part(y)).backward()
        optimizer.step()
    assert_same_on_all_ranks(model)
    assert model.after.bias.grad.numel() == CLASSES


def test_shutdown_and_init_in_between(rank, size):
    model, optimizer = linear()
    for _ in range(3):
        optimizer.zero_grad()
        weight_with_grad(model, rank).backward()
        assert values(model.weight.grad) == [mean(size)]
        optimizer.step()
        rr.barrier()
        rr.shutdown()
        rr.init()
