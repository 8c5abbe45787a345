"""A collective at many sizes, ours beside the peers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ringreduce.bench.collectives import COLLECTIVES, OURS, Buffers, Collective, Unsupported
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender, alternate
from ringreduce.bench.turns import Effort, Progress, Timing
from ringreduce.bench.units import show_size

SHORT_BYTES = 16 << 10  # up to here a turn has many calls


@dataclass(frozen=True)
class Manner:
    """How collectives are called."""

    blocks: bool = False  # one call after the other; else as in programs, with other libraries in between
    named: bool = True

    def __str__(self) -> str:
        how = "in blocks of calls" if self.blocks else "each call after a barrier, on numbers just written"
        return f"{how}, {'named' if self.named else 'unnamed'}"


@dataclass(frozen=True)
class Row:
    """One library at one size."""

    library: str
    nbytes: int  # of the result on each rank
    timing: Timing
    busbw: float  # bytes/s

    @property
    def algbw(self) -> float:
        """Bytes/s."""
        return self.nbytes / self.timing.median

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, bytes/s."""
        own = {"library": self.library, "bytes": self.nbytes, "algbw": self.algbw, "busbw": self.busbw}
        return own | vars(self.timing)


AnyRow = TypeVar("AnyRow", bound=Row)


def sweep(
    job: Job, collective: Collective, sizes: Sequence[int], dtype: str, peers: Sequence[str], manner: Manner,
    effort: Effort, progress: Progress, as_row: Callable[[Contender, int, Timing], AnyRow],
) -> tuple[list[AnyRow], list[str]]:  # fmt: skip
    """Measure every size. Collective over all ranks; returns rows, and notes about what is left out.

    Args:
        as_row: makes a contender, its bytes and its timing a row; the contender can still be called.
    """
    rows: list[AnyRow] = []
    notes: dict[str, None] = {}
    for nbytes in sizes:
        progress.begin(f"{collective.name} {show_size(nbytes)}")
        elements = collective.elements(nbytes, getattr(torch, dtype).itemsize, job.size)
        buffers = Buffers(job, dtype, elements, "bench" if manner.named else None)
        with buffers.closing:
            contenders, missing = contend(collective, buffers, peers)
            notes |= dict.fromkeys(missing)
            actual = buffers.data.nbytes
            timings = alternate(job, contenders, effort, actual <= SHORT_BYTES, manner.blocks, progress.step)
            rows += [as_row(one, actual, timings[one.name]) for one in contenders]
    return rows, list(notes)


def measure_collective(
    job: Job, name: str, sizes: Sequence[int], dtype: str, peers: Sequence[str], manner: Manner, effort: Effort,
    progress: Progress,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """Measure every size of one collective, as `sweep` does."""
    collective = COLLECTIVES[name]
    factor = collective.bus_factor(job.size)

    def as_row(one: Contender, nbytes: int, timing: Timing) -> Row:
        return Row(one.name, nbytes, timing, factor * nbytes / timing.median)

    return sweep(job, collective, sizes, dtype, peers, manner, effort, progress, as_row)


def contend(collective: Collective, buffers: Buffers, peers: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Ours and the peers that can do it, and why the others cannot."""
    contenders, missing = [], []
    for name in [*(one for one in OURS if one in collective.ways), *peers]:
        try:
            contenders.append(collective.contender(name, buffers))
        except Unsupported as reason:
            missing.append(str(reason))
    return contenders, missing
