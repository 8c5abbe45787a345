"""Models and training loops for the tests of DistributedOptimizer.

The reference is always plain torch in one process on the whole batch, computed by each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import ringreduce as rr

WORDS, CLASSES, ROWS = 30, 5, 12  # ROWS divides by 1, 2, 3 and 4 ranks


class Net(nn.Module):
    """A sparse embedding, a layer used twice, tied weights, and a layer that is never used."""

    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8, sparse=sparse)
        self.before = nn.Linear(8, 16)
        self.twice = nn.Linear(16, 16)
        self.unused = nn.Linear(3, 3)
        self.tied = nn.Linear(16, 16, bias=False)
        self.tied.weight = self.twice.weight
        self.after = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.before(self.words(x).mean(1)))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        out: Tensor = self.after(torch.tanh(self.tied(h)))
        return out


def make(build: Callable[[], nn.Module] = Net, seed: int = 1) -> nn.Module:
    """The same model on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def batches(steps: int, rows: int = ROWS, seed: int = 7) -> Iterator[tuple[Tensor, Tensor]]:
    """The same whole batches on every rank."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randint(0, WORDS, (rows, 4), generator=generator)
        yield x, torch.randint(0, CLASSES, (rows,), generator=generator)


def part(x: Tensor, process_set: rr.ProcessSet = rr.global_process_set) -> Tensor:
    """This rank's share of a whole batch."""
    return x.tensor_split(process_set.size())[process_set.rank()]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


def dense(model: nn.Module) -> list[Tensor]:
    """The parameters whose gradients are dense: what clipping can work on."""
    return [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse]


def relative_error(model: nn.Module, reference: nn.Module) -> float:
    """The largest difference of a parameter, relative to the largest value in it."""
    return max(
        float((p - q).detach().abs().max() / q.detach().abs().max())
        for p, q in zip(model.parameters(), reference.parameters(), strict=True)
    )


def assert_identical(model: nn.Module, reference: nn.Module) -> None:
    """The same bits, and gradients on the same parameters."""
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs by {(p - q).abs().max()}"
        assert (p.grad is None) == (q.grad is None), name


def assert_same_on_all_ranks(model: nn.Module, process_set: rr.ProcessSet = rr.global_process_set) -> None:
    """The ranks of a set have the same bits."""
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    gathered = rr.allgather(mine.unsqueeze(0), process_set=process_set)
    assert (gathered == mine).all()


def distributed(optimizer: torch.optim.Optimizer, model: nn.Module, **options: object) -> torch.optim.Optimizer:
    return rr.DistributedOptimizer(optimizer, model.named_parameters(), **options)  # type: ignore[arg-type]
