"""Objects, parameters and optimizer state between ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import WORLD, Digest

import ringreduce as rr


@pytest.mark.smoke
def test_broadcast_object(rank, size):
    for root in {0, size - 1}:
        for k, obj in enumerate((None, 0, "text ä", b"", {"a": [1, (2, 3)]}, list(range(20_000)))):
            mine = obj if rank == root else f"rank {rank}"
            assert rr.broadcast_object(mine, root_rank=root, name=f"object {k}") == obj


def test_broadcast_object_leaves_the_roots_own(rank):
    mine = [1, 2]
    result = rr.broadcast_object(mine, root_rank=0)
    assert result == [1, 2]
    if rank == 0:
        assert result is mine


def test_allgather_object(rank, size):
    assert rr.allgather_object(["x" * 1_000 * rank, rank]) == [["x" * 1_000 * r, r] for r in range(size)]
    assert rr.allgather_object(None, name="nothing") == [None] * size


def test_broadcast_parameters(rank, size):
    root = size - 1
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    model(torch.randn(4, 7))  # running statistics differ by rank
    expected = WORLD.bcast({k: v.clone() for k, v in model.state_dict().items()}, root=root)
    addresses = {k: v.data_ptr() for k, v in model.state_dict().items()}

    rr.broadcast_parameters(model.state_dict(), root_rank=root)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.data_ptr() == addresses[name], f"{name} has moved"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_broadcast_parameters_takes_a_list(rank):
    model = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(model.weight, float(rank))
    rr.broadcast_parameters(list(model.named_parameters()), root_rank=0)
    assert bool((model.weight == 0).all())
    tied = torch.full((3,), float(rank))
    rr.broadcast_parameters([("a", tied), ("b", tied)], root_rank=0)
    assert tied.tolist() == [0.0] * 3


def test_broadcast_parameters_refuses(rank):
    model = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="params"):
        rr.broadcast_parameters(model.named_parameters(), root_rank=0)
    with pytest.raises(ValueError, match="params"):
        rr.broadcast_parameters([model.weight], root_rank=0)
    with pytest.raises(ValueError, match="root_rank"):
        rr.broadcast_parameters(model.state_dict(), root_rank=1_000)


def optimizer_classes() -> list[type[torch.optim.Optimizer]]:
    found = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
    return sorted((c for c in found if c not in (torch.optim.Optimizer, torch.optim.LBFGS)), key=lambda c: c.__name__)


OPTIONS: dict[str, list[dict[str, Any]]] = {  # besides the defaults
    "SGD": [{"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.1}],
    "Adam": [{"amsgrad": True, "betas": (0.8, 0.9)}, {"lr": torch.tensor(0.01)}],
    "AdamW": [{"foreach": False, "weight_decay": 0.2}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
}
VARIANTS = [(c, options) for c in optimizer_classes() for options in [{}, *OPTIONS.get(c.__name__, [])]]


def build(cls: type[torch.optim.Optimizer], options: dict[str, Any], seed: int) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(seed)
    model: torch.nn.Module = torch.nn.Embedding(6, 4, sparse=cls is torch.optim.SparseAdam)
    if cls is not torch.optim.SparseAdam:
        model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False))
    parameters = list(model.parameters())
    groups = [{"params": parameters[:1]}]
    if len(parameters) > 1:  # a second group with options of its own
        groups.append({"params": parameters[1:], "weight_decay": 0.125})
    return model, cls(groups, **copy.deepcopy(options))


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        optimizer.zero_grad()
        if isinstance(model, torch.nn.Embedding):
            model(torch.tensor([1, 3, step % 6])).square().sum().backward()
        else:
            model(torch.full((3, 4), 0.1 * (step + 1))).square().sum().backward()
        optimizer.step()


def plain(tree: Any) -> Any:
    """A state_dict as something that can be compared: tensors as (dtype, values), types kept."""
    if isinstance(tree, torch.Tensor):
        return ("tensor", str(tree.dtype), tree.tolist())
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(plain(value) for value in tree)
    return (type(tree), tree)


@pytest.mark.parametrize(
    ("cls", "options"), VARIANTS, ids=lambda value: getattr(value, "__name__", None) or ",".join(value)
)
def test_broadcast_optimizer_state(rank, size, cls, options):
    """Only the root has made steps, others none or another number; all end with the root's state."""
    root = size - 1
    model, optimizer = build(cls, options, seed=rank)
    steps(model, optimizer, 3 if rank == root else rank % 2)
    if rank != root:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                group["lr"] *= 2
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    expected = WORLD.bcast(plain(optimizer.state_dict()), root=root)

    rr.broadcast_optimizer_state(optimizer, root_rank=root)
    assert plain(optimizer.state_dict()) == expected
    for name, value in model.named_parameters():
        assert torch.equal(value, parameters[name]), f"{name} was changed"

    rr.broadcast_parameters(model.state_dict(), root_rank=root)
    steps(model, optimizer, 2)  # the state is usable, and the same
    digest = Digest()
    digest.add(*model.parameters())
    digest.assert_same_everywhere()


def test_broadcast_optimizer_state_when_nobody_has_any(rank):
    _, optimizer = build(torch.optim.AdamW, {"lr": 0.5 if rank == 0 else 0.25}, seed=0)
    rr.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state_dict()["state"] == {}


def test_lbfgs_is_refused():
    optimizer = torch.optim.LBFGS(torch.nn.Linear(2, 2).parameters())
    with pytest.raises(ValueError, match="LBFGS"):
        rr.broadcast_optimizer_state(optimizer, root_rank=0)


def test_keyword_names_of_programs_written_for_horovod(rank):
    model, optimizer = build(torch.optim.SGD, {"lr": 0.1}, seed=rank)
    rr.broadcast_optimizer_state(optimizer, root_rank=0, model=model)
    rr.broadcast_parameters(params=model.state_dict(), root_rank=0)
    assert rr.broadcast_object(obj=rank, root_rank=0, name="keyword") == 0
    assert rr.allgather_object(obj=1, name="keyword") == [1] * rr.size()
