"""The models whose training step is timed, each with the inputs of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention and an MLP, each added to its input. [B, L, D] to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class GPT(nn.Module):
    """Token numbers [B, L] to logits [B, L, vocabulary]."""

    def __init__(
        self, layers: int = 6, dim: int = 512, heads: int = 8, vocabulary: int = 8192, length: int = 128
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(x)))
        return out


@dataclass(frozen=True)
class Model:
    """`build` makes the module; `loss` runs it forward on `inputs`, made by `data`."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def _mlp(layers: int) -> nn.Module:
    """Of 2048 x 2048: 4.2 million parameters each."""
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(2048, 2048), nn.ReLU())))


def rows_of_2048(batch: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of an MLP."""
    return torch.randn(batch, 2048), torch.randn(batch, 2048)


MEASURED = ("mlp", "gpt")  # by default; the other is for seeing whether everything works
MODELS = {
    one.name: one
    for one in (
        Model("mlp", partial(_mlp, 12), partial(rows_of_2048, 32), F.mse_loss),
        Model(
            "gpt",
            GPT,
            lambda: (torch.randint(8192, (2, 128)), torch.randint(8192, (2, 128))),
            lambda logits, following: F.cross_entropy(logits.flatten(0, 1), following.flatten()),
        ),
        Model("small", partial(_mlp, 4), partial(rows_of_2048, 4), F.mse_loss),
    )
}
