"""The models whose training step is timed on GPUs, each with the inputs of a step."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ringreduce.bench.models import GPT, MODELS, Model, rows_of_2048

VOCABULARY = 32768
LARGE_MEMORY = 60 << 30  # bytes of a GPU's memory from which on two ranks can train the large model


def _gpt(name: str, layers: int, dim: int, heads: int, length: int, batch: int) -> Model:
    def data() -> tuple[Tensor, Tensor]:
        shape = (batch, length)
        return torch.randint(VOCABULARY, shape), torch.randint(VOCABULARY, shape)

    return Model(name, lambda: GPT(layers, dim, heads, VOCABULARY, length), data, MODELS["gpt"].loss)


GPU_MODELS = {
    one.name: one
    for one in (
        Model("mlp", MODELS["mlp"].build, partial(rows_of_2048, 2048), MODELS["mlp"].loss),
        _gpt("gpt", layers=12, dim=768, heads=12, length=512, batch=8),
        _gpt("gpt-large", layers=24, dim=1024, heads=16, length=1024, batch=4),
    )
}


def fitting(memory: int) -> list[str]:
    """The models for a GPU with so many bytes of memory."""
    return [name for name in GPU_MODELS if name != "gpt-large" or memory >= LARGE_MEMORY]
