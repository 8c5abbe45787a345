"""Trains a small byte-level GPT on the source text of this machine's Python standard library.

    mpirun -np 4 python examples/train_gpt.py --steps 300 --checkpoint-dir checkpoints

Every rank reads its own share of the files and draws its own sequences from it. What a step
draws depends on the seed, the step and the rank alone, so a run that was stopped and resumed
from its checkpoint goes on exactly as if it had not been. Rank 0 writes the checkpoints; one
that resumes reads on rank 0 and broadcasts. At the end rank 0 samples some text.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn import functional as F

import ringreduce as rr

VOCABULARY = 256  # bytes
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
MODEL_OPTIONS = ("dim", "layers", "heads", "context")
T = TypeVar("T")


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.mlp(self.norm_mlp(x))


class GPT(nn.Module):
    """Bytes [B, L] to the logits of the byte after each, [B, L, 256]. L is at most `context`."""

    def __init__(self, dim: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.context = context
        self.bytes = nn.Embedding(VOCABULARY, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY, bias=False)
        for embedding in (self.bytes, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.head.weight = self.bytes.weight  # tied

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def sample(self, prompt: bytes, count: int, temperature: float, seed: int) -> bytes:
        """`prompt` and `count` bytes after it. A temperature of 0 or less takes the likeliest byte."""
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.tensor([list(prompt)])
        for _ in range(count):
            logits = self(tokens[:, -self.context :])[0, -1]
            if temperature <= 0:
                following = logits.argmax().view(1)
            else:
                probabilities = F.softmax(logits / temperature, dim=0)
                following = torch.multinomial(probabilities, 1, generator=generator)
            tokens = torch.cat([tokens, following[None]], dim=1)
        return bytes(tokens[0].tolist())


def on_rank_0(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, on every rank; where it exits there, every rank exits.

    So a mistake is told once, and nobody waits for a rank that has left.
    """
    result: Any = None
    status: int | None = None  # of the exit, None where there is none
    if rr.rank() == 0:
        try:
            result = function()
        except SystemExit as stop:
            told = isinstance(stop.code, str)
            if told:
                print(stop.code, file=sys.stderr, flush=True)
            status = 2 if told else int(stop.code or 0)
    result, status = rr.broadcast_object((result, status), root_rank=0)
    if status is not None:
        sys.exit(status)
    return cast(T, result)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=200, help="train until this step, those of a resumed run included")
    add("--batch", type=int, default=8, help="sequences a step on each rank")
    add("--dim", type=int, default=64, help="width of the model")
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--context", type=int, default=64, help="bytes the model looks back")
    add("--lr", type=float, default=5e-3, help="highest learning rate")
    add("--warmup", type=int, default=50, help="steps until it is reached")
    add("--clip", type=float, default=1.0, help="largest gradient norm")
    add("--seed", type=int, default=0)
    add("--log-every", type=int, default=20, help="steps between two lines")
    add("--checkpoint-dir", type=Path, help="resume from the checkpoint in this folder, and write it there")
    add("--checkpoint-every", type=int, default=100, help="steps between two checkpoints")
    add("--prompt", default="def ", help="what the sample begins with")
    add("--sample-bytes", type=int, default=200)
    add("--temperature", type=float, default=0.8, help="of the sample; 0 or less: the likeliest byte each time")
    options = parser.parse_args()
    for name in ("batch", "dim", "layers", "heads", "context", "warmup", "log_every", "checkpoint_every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(options, name)}")
    for name in ("steps", "sample_bytes"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative, and is {getattr(options, name)}")
    for name in ("lr", "clip"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be a positive number, not {getattr(options, name)}")
    if not math.isfinite(options.temperature):
        parser.error(f"--temperature must be a finite number, not {options.temperature}")
    if options.dim % options.heads:
        parser.error(f"--dim {options.dim} is not a multiple of --heads {options.heads}")
    if not options.prompt:
        parser.error("--prompt must not be empty")
    return options


def load_text(rank: int, size: int, context: int) -> torch.Tensor:
    """This rank's share of the standard library's source, as bytes [N]."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in root.rglob("*.py") if not NOT_LIBRARY & set(p.relative_to(root).parts))
    text = b"".join(path.read_bytes() for path in files[rank::size])
    if len(text) <= context:
        sys.exit(f"rank {rank} has {len(text)} bytes of text from {root}, and --context {context} needs more")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def draw(text: torch.Tensor, options: argparse.Namespace, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's sequences of this step and, for each byte, the one after it: two [batch, context]."""
    seed = options.seed * 1_000_003 + step * rr.size() + rr.rank()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - options.context, (options.batch, 1), generator=generator)
    windows = text[starts + torch.arange(options.context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


class Run:
    """What a checkpoint holds: model, optimizer, scheduler and the number of steps done."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.shape = {name: getattr(options, name) for name in MODEL_OPTIONS}
        self.model = GPT(**self.shape)
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=options.lr)
        self.optimizer = rr.DistributedOptimizer(self.optimizer, named_parameters=self.model.named_parameters())
        warmup = options.warmup
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
        )
        self.step = 0

    def save(self, path: Path) -> None:
        """Writes beside `path` and renames: whenever the job dies, a whole checkpoint is there."""
        state = {
            "shape": self.shape,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Takes over the checkpoint at `path`, if there is one; exits where it cannot be used."""
        if not path.exists():
            return
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            shape = dict(state["shape"])
        except Exception as error:  # torch.load raises many kinds, and each means the same here
            reason = (str(error) or type(error).__name__).split("\n")[0].split(". ")[0]
            sys.exit(f"{path} is damaged, or no checkpoint of this program; delete it to start anew ({reason})")
        if shape != self.shape:
            sys.exit(f"{path} is of a model of {shape}, and the options ask for {self.shape}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = state["step"]
        print(f"resuming {path} after step {self.step}", flush=True)

    def share(self) -> None:
        """Gives every rank what rank 0 has."""
        rr.broadcast_parameters(self.model.state_dict(), root_rank=0)
        rr.broadcast_optimizer_state(self.optimizer, root_rank=0)
        scheduler, self.step = rr.broadcast_object((self.scheduler.state_dict(), self.step), root_rank=0)
        self.scheduler.load_state_dict(scheduler)


def train(run: Run, text: torch.Tensor, options: argparse.Namespace, path: Path | None) -> None:
    since, since_step = time.perf_counter(), run.step
    while run.step < options.steps:
        tokens, following = draw(text, options, run.step)
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(tokens).flatten(0, 1), following.flatten())
        loss.backward()  # the gradients are averaged over all ranks when this returns
        nn.utils.clip_grad_norm_(run.model.parameters(), options.clip)
        run.optimizer.step()
        run.scheduler.step()
        run.step += 1

        last = run.step == options.steps
        if last or run.step % options.log_every == 0:
            mean = rr.allreduce(loss.detach(), name="loss").item()
            if rr.rank() == 0:
                done = (run.step - since_step) * options.batch * options.context * rr.size()
                speed = done / (time.perf_counter() - since)
                print(f"step {run.step:5d}  loss {mean:.4f}  {speed:,.0f} tokens/s", flush=True)
            since, since_step = time.perf_counter(), run.step
        if path is not None and rr.rank() == 0 and (last or run.step % options.checkpoint_every == 0):
            run.save(path)


def main() -> None:
    rr.init()
    torch.set_num_threads(1)  # the ranks share the cores
    options = on_rank_0(parse_options)
    text = load_text(rr.rank(), rr.size(), options.context)
    path = options.checkpoint_dir / "checkpoint.pt" if options.checkpoint_dir else None
    run = Run(options)
    if path is not None:
        on_rank_0(lambda: run.load(path))
    run.share()
    train(run, text, options, path)
    if rr.rank() == 0:
        sample = run.model.sample(options.prompt.encode(), options.sample_bytes, options.temperature, options.seed)
        print(sample.decode(errors="replace"))


if __name__ == "__main__":
    main()
