"""What a random program is written with. Its one argument is a Side: this rank's share of the
work with DistributedOptimizer, or the whole work in one process with plain torch."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from net import DATA, Net, OutOfMemory
from torch import Tensor, nn

import ringreduce as rr

Optimizers = list[torch.optim.Optimizer]


class Side:
    """`notes` are what both sides must agree on besides the parameters."""

    def __init__(self, distributed: bool, process_set: rr.ProcessSet) -> None:
        self.distributed = distributed
        self.set = process_set
        self.member = process_set.included()
        self.size = process_set.size() if self.member else 1
        self.factor = 1  # by which op=Sum multiplies
        self.notes: list[tuple[str, Tensor | None]] = []
        self._keeping: list[Tensor] = []
        self._kept: list[tuple[Tensor, Tensor]] = []

    def wrap(
        self, optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, Tensor]] | None = None, **options: Any
    ) -> torch.optim.Optimizer:
        if options.get("op") == rr.Sum:
            self.factor = self.size
        if not self.distributed:
            return optimizer
        return rr.DistributedOptimizer(optimizer, named, process_set=self.set, **options)

    def loss(self, model: Net, batch: int, inf: bool = False, **how: Any) -> Tensor:
        """The mean over the rows; `inf`: infinite in the first one."""
        x, words, chosen, y = (self._share(t) for t in DATA[batch])
        dtype = model.last.weight.dtype
        out = model(x.to(dtype), words, chosen, **how)
        rows = (out - (0 if how.get("half") else y.to(dtype))).square().mean(1)
        if inf and self._share(torch.arange(12))[0] == 0:
            rows = rows * torch.tensor([torch.inf] + [1] * (len(rows) - 1), dtype=dtype)
        return rows.mean() * (1 if self.distributed else self.factor)

    def _share(self, whole: Tensor) -> Tensor:
        if not self.distributed or not self.member:
            return whole
        return whole.tensor_split(self.size)[self.set.rank()]

    @contextmanager
    def no_sync(self, optimizers: Optimizers) -> Iterator[None]:
        with ExitStack() as stack:
            for o in optimizers:
                if self.distributed:
                    stack.enter_context(o.no_sync())
            yield

    @contextmanager
    def skip_synchronize(self, optimizers: Optimizers) -> Iterator[None]:
        """After a synchronize()."""
        with ExitStack() as stack:
            for o in optimizers:
                if self.distributed:
                    stack.enter_context(o.skip_synchronize())
            yield

    def synchronize(self, optimizers: Optimizers) -> None:
        for o in optimizers:
            if self.distributed:
                o.synchronize()

    def look(self, optimizers: Optimizers) -> None:
        """Both sides have the same gradients here."""
        for i, p in enumerate(parameters(optimizers)):
            grad = p.grad
            if grad is not None:
                grad = grad.detach().to_dense() if grad.is_sparse else grad.detach().clone()
            self.notes.append((f"gradient {i}", grad))

    def note(self, loss: Any) -> None:
        """Both sides have the same loss here."""
        self.notes.append(("loss", None if loss is None else torch.as_tensor(loss).detach().clone()))

    def keep(self, gradients: Iterable[Tensor]) -> None:
        """Hold on to these gradients."""
        self._keeping += gradients

    def let_go(self) -> None:
        """p.grad is about to be set to None: from here on what was kept has to keep its numbers."""
        self._kept += [(g, g.detach().clone()) for g in self._keeping]
        self._keeping = []

    def forget(self) -> None:
        """What was taken hold of is p.grad still, and may be reduced where it is."""
        self._keeping = []

    def kept(self) -> bool:
        """Whether all of it has."""
        return all(
            torch.equal(*(t.detach().to_dense() if t.is_sparse else t.detach() for t in pair)) for pair in self._kept
        )

    def start_anew(self, optimizers: Optimizers) -> None:
        """After an exception in backward(), plain torch has to be told; DistributedOptimizer has not."""
        if not self.distributed and self.size > 1:  # a set of one is as plain torch, which keeps what has come
            for p in parameters(optimizers):
                p.grad = None

    def broadcast(self, model: Net, optimizers: Optimizers) -> None:
        """What programs do after they have loaded a checkpoint."""
        if self.distributed and self.member:
            root = self.set.ranks[0] if self.set.ranks else 0
            rr.broadcast_parameters(model.state_dict(), root, self.set)
            for o in optimizers:
                rr.broadcast_optimizer_state(o, root, process_set=self.set)


def parameters(optimizers: Optimizers) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def present(optimizers: Optimizers) -> list[Tensor]:
    """Parameters with a gradient."""
    return [p for p in parameters(optimizers) if p.grad is not None]


def dense(optimizers: Optimizers) -> list[Tensor]:
    """Parameters with a dense gradient."""
    return [p for p in present(optimizers) if not p.grad.is_sparse]


def gradients(loss: Tensor, optimizers: Optimizers) -> list[tuple[Tensor, Tensor | None]]:
    """Each parameter with its gradient from torch.autograd.grad."""
    ps = [p for p in parameters(optimizers) if p.requires_grad]
    return list(zip(ps, torch.autograd.grad(loss, ps, allow_unused=True), strict=True))


def unlike(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether one is missing, or only one is sparse."""
    return a is None or b is None or a.is_sparse or b.is_sparse


def transposed(t: Tensor) -> Tensor:
    """The same numbers with the strides of a transposed matrix."""
    return torch.empty_strided(t.shape, (1, t.shape[0]), dtype=t.dtype).copy_(t) if t.dim() == 2 else t.clone()


def scale(factor: float, tensors: Iterable[Tensor]) -> None:
    for t in tensors:
        t.mul_(factor)


@contextmanager
def caught() -> Iterator[None]:
    try:
        yield
    except OutOfMemory:
        return
    raise AssertionError("the backward pass has not raised")


def saved(state: Any) -> Any:
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


__all__ = [
    "Callable", "Net", "Side", "caught", "copy", "dense", "gradients", "nn", "parameters", "pickle", "present", "rr",
    "saved", "scale", "torch", "transposed", "unlike",
]  # fmt: skip
