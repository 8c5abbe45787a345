"""allreduce between hosts, against what the network between them carries.

A ring sends 2(H-1)/H x S bytes out of each of H hosts, whatever the number of ranks there, and
no algorithm sends fewer. busbw is that over the time, so it can be compared with a link's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ringreduce.bench import link
from ringreduce.bench.collectives import COLLECTIVES, Buffers
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender, Effort, Timing, alternate
from ringreduce.bench.sweep import BATCHED_BYTES, Progress, contend
from ringreduce.bench.units import show_size

COUNTED_BYTES = 1 << 20  # below, packets are mostly headers and say nothing about an algorithm
COUNTED_CALLS = 3


@dataclass(frozen=True)
class HostRow:
    """One library at one size."""

    library: str
    nbytes: int
    timing: Timing
    busbw: float  # bytes/s out of each host
    sent: float | None  # of the host that sent most: data bytes / least possible; None if not counted

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, bytes/s."""
        own = {"library": self.library, "bytes": self.nbytes, "busbw": self.busbw, "sent_of_least": self.sent}
        return own | vars(self.timing)


def measure_hosts(
    job: Job, sizes: Sequence[int], dtype: str, peers: Sequence[str], effort: Effort, interface: str, progress: Progress
) -> tuple[list[HostRow], list[str]]:
    """Measure every size. Collective over all ranks, which are on two hosts at least."""
    if "gloo" in peers:
        job.start_gloo(interface)
    collective = COLLECTIVES["allreduce"]
    rows: list[HostRow] = []
    notes: dict[str, None] = {}
    for nbytes in sizes:
        progress.begin(f"allreduce {show_size(nbytes)}")
        buffers = Buffers(job, dtype, collective.elements(nbytes, getattr(torch, dtype).itemsize, job.size))
        with buffers.closing:
            contenders, missing = contend(collective, buffers, peers)
            notes |= dict.fromkeys(missing)
            actual = buffers.data.nbytes
            least = 2 * (job.hosts - 1) / job.hosts * actual
            here = Effort(effort.repeats, effort.seconds, batched=actual <= BATCHED_BYTES)
            timings = alternate(job, contenders, here, progress.step)
            for one in contenders:
                sent = _sent(job, one, interface) / least if actual >= COUNTED_BYTES and _real(job) else None
                timing = timings[one.name]
                rows.append(HostRow(one.name, actual, timing, least / timing.median, sent))
    return rows, list(notes)


def _real(job: Job) -> bool:
    """Whether every host is a machine of its own, with a link that can be counted."""
    return len(set(job.machines)) == job.hosts


def _sent(job: Job, one: Contender, interface: str) -> float:
    """Data bytes a call out of the host that sends most, headers left out."""
    one.rewrite(0)
    job.barrier()
    before = link.sent(interface)
    job.barrier()
    for _ in range(COUNTED_CALLS):
        one.call()
    job.barrier()
    after = link.sent(interface)
    data = after.nbytes - before.nbytes - link.HEADERS * (after.packets - before.packets)
    return max(job.largest([data / COUNTED_CALLS]))
