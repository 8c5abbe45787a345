"""allreduce between hosts, against what the network between them carries.

A ring sends 2(H-1)/H x S bytes out of each of H hosts, whatever the number of ranks there, and
no algorithm sends fewer. busbw is that over the time, so it can be compared with a link's rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ringreduce.bench import link
from ringreduce.bench.collectives import COLLECTIVES
from ringreduce.bench.job import Job
from ringreduce.bench.measure import Contender
from ringreduce.bench.sweep import Manner, Row, sweep
from ringreduce.bench.turns import Effort, Progress, Timing

COUNTED_BYTES = 1 << 20  # below, packets are mostly headers and say nothing about an algorithm
COUNTED_CALLS = 3


@dataclass(frozen=True)
class HostRow(Row):
    """One library at one size; busbw is out of each host."""

    sent: float | None  # of the host that sent most: data bytes / least possible; None if not counted

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, bytes, bytes/s."""
        return super().as_dict() | {"sent_of_least": self.sent}


def measure_hosts(
    job: Job, sizes: Sequence[int], dtype: str, peers: Sequence[str], effort: Effort, interface: str, progress: Progress
) -> tuple[list[HostRow], list[str]]:
    """Measure every size. Collective over all ranks, which are on two hosts at least."""
    are_machines = len(set(job.machines)) == job.hosts  # each with a link that can be counted

    def as_row(one: Contender, nbytes: int, timing: Timing) -> HostRow:
        least = 2 * (job.hosts - 1) / job.hosts * nbytes
        is_counted = are_machines and nbytes >= COUNTED_BYTES
        sent = _sent(job, one, interface) / least if is_counted else None
        return HostRow(one.name, nbytes, timing, least / timing.median, sent)

    return sweep(job, COLLECTIVES["allreduce"], sizes, dtype, peers, Manner(), effort, progress, as_row)


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
    return job.longest(data / COUNTED_CALLS)
