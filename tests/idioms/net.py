"""The model and the data of the random programs: tiny, and with one of everything that gradients depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROWS, BATCHES, WIDTH = 12, 6, 6  # ROWS divides by 1, 2, 3 and 4 ranks
WORDS = 5
FEATURES = ("words", "sparse", "conv", "tied", "rare", "never", "extra")


class OutOfMemory(RuntimeError):
    """What a backward pass raises when it is told to."""


class Raise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise OutOfMemory


class Call(torch.autograd.Function):
    """Calls a function in the middle of a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[], None]) -> Tensor:
        ctx.function = function
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            ctx.function()
        return grad, None


class Net(nn.Module):
    """Two layers of one shape, and what `features` names:

    words    an embedding; sparse: with sparse gradients
    conv     a weight of four dimensions, for channels_last
    tied     a third layer with the weight of the first of those two
    rare     a layer for some rows, in some batches for rows of rank 0 only
    never    a layer that is never used
    extra    a layer that is not in the optimizer at first
    """

    def __init__(self, features: str = "", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        chosen = set(features.split())
        self.first = nn.Linear(8, WIDTH)
        self.one = nn.Linear(WIDTH, WIDTH)
        self.two = nn.Linear(WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 3)
        self.words = nn.Embedding(WORDS, 8, sparse="sparse" in chosen) if chosen & {"words", "sparse"} else None
        self.conv = nn.Conv2d(2, WIDTH, 2) if "conv" in chosen else None
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False) if "tied" in chosen else None
        self.rare = nn.Linear(WIDTH, WIDTH) if "rare" in chosen else None
        self.never = nn.Linear(2, 2) if "never" in chosen else None
        self.extra = nn.Linear(WIDTH, WIDTH) if "extra" in chosen else None
        if self.tied is not None:
            self.tied.weight = self.one.weight
        self.to(dtype)
        with torch.no_grad():  # the same on all ranks, and away from where tanh is flat
            for i, p in enumerate(self.parameters()):
                p.copy_((torch.arange(p.numel(), dtype=torch.float64).mul_(1.7).add_(i).sin_() * 0.4).view_as(p))

    def body(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters without those of `extra`."""
        return [(name, p) for name, p in self.named_parameters() if not name.startswith("extra")]

    def forward(
        self,
        x: Tensor,
        words: Tensor,
        chosen: Tensor,
        *,
        raising: int = 0,
        half: bool = False,
        reentrant: bool = False,
        inside: Callable[[], None] | None = None,
    ) -> Tensor:
        """`raising`: where the backward pass raises: 1 at its start, 2 in the middle, 3 near its end."""
        if self.words is not None:
            x = x + self.words(words)
        h = torch.tanh(self.first(x))
        if self.conv is not None:
            h = h + torch.tanh(self.conv(x.view(-1, 2, 2, 2))).flatten(1)
        h = Raise.apply(h) if raising == 3 else h
        h = checkpoint(self.middle, h, use_reentrant=True) if reentrant else self.middle(h)
        h = Raise.apply(h) if raising == 2 else h
        h = Call.apply(h, inside) if inside is not None else h
        if half:
            return h
        if self.rare is not None and chosen.any():
            h = h + chosen.unsqueeze(1) * torch.tanh(self.rare(h))
        out: Tensor = self.last(h)
        return Raise.apply(out) if raising == 1 else out

    def middle(self, h: Tensor) -> Tensor:
        h = torch.tanh(self.two(torch.tanh(self.one(h))))
        for layer in (self.tied, self.extra):
            if layer is not None:
                h = h + torch.tanh(layer(h))
        return h


def _batches() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for i in range(BATCHES):
        x = torch.randn(ROWS, 8, generator=generator, dtype=torch.float64)
        y = torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
        words = torch.randint(0, WORDS - 1, (ROWS,), generator=generator)
        rows = torch.arange(ROWS)
        chosen = (rows % 4 == 1) if i % 3 == 0 else (rows < 3) if i % 3 == 1 else (rows < 0)
        found.append((x, words, chosen, y))
    return found


DATA = _batches()  # whole batches: x, words, chosen rows, y; the same on every rank
