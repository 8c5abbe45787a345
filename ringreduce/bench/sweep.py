"""A collective at many sizes, ours beside the peers'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ringreduce.bench.collectives import OURS, Buffers, Collective, Unsupported
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender, Effort, Timing, alternate
from ringreduce.bench.units import show_size

BATCHED_BYTES = 16 << 10  # up to here a sample holds many calls


class Progress(Protocol):
    """Where rank 0 shows how far it is. `step` is called between samples only."""

    def begin(self, what: str) -> None: ...
    def step(self, done: int, of: int) -> None: ...


@dataclass(frozen=True)
class Row:
    """One library at one size."""

    library: str
    nbytes: int  # of the result on each rank
    timing: Timing
    algbw: float  # bytes/s
    busbw: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, bytes/s."""
        return {
            "library": self.library,
            "bytes": self.nbytes,
            **vars(self.timing),
            "algbw": self.algbw,
            "busbw": self.busbw,
        }


def sweep(
    job: Job,
    collective: Collective,
    sizes: Sequence[int],
    dtype: str,
    peers: Sequence[str],
    effort: Effort,
    progress: Progress,
) -> tuple[list[Row], list[str]]:
    """Measure every size. Collective over all ranks; returns rows, and notes about what is left out."""
    if "gloo" in peers:
        job.start_gloo()
    rows: list[Row] = []
    notes: dict[str, None] = {}
    factor = collective.bus_factor(job.size)
    for nbytes in sizes:
        progress.begin(f"{collective.name} {show_size(nbytes)}")
        buffers = Buffers(job, dtype, collective.elements(nbytes, getattr(torch, dtype).itemsize, job.size))
        with buffers.closing:
            contenders, missing = contend(collective, buffers, peers)
            notes |= dict.fromkeys(missing)
            actual = buffers.data.nbytes
            here = Effort(effort.repeats, effort.seconds, batched=actual <= BATCHED_BYTES)
            for library, timing in alternate(job, contenders, here, progress.step).items():
                algbw = actual / timing.median
                rows.append(Row(library, actual, timing, algbw, algbw * factor))
    return rows, list(notes)


def contend(collective: Collective, buffers: Buffers, peers: Sequence[str]) -> tuple[list[Contender], list[str]]:
    """Ours and the peers that can do it, and why the others cannot."""
    contenders, missing = [], []
    for name in [*(one for one in OURS if one in collective.ways), *peers]:
        try:
            contenders.append(collective.contender(name, buffers))
        except Unsupported as reason:
            missing.append(str(reason))
    return contenders, missing
