"""Timing contenders fairly: turn by turn, all ranks at once, the slowest rank counts.

as programs call    (rewrite the inputs, barrier, begin ─ call ─ end) × calls    each call is a sample
in blocks            rewrite the inputs, barrier, begin ─ call × batch ─ end     a block is a sample

Between two calls of a program there are other libraries, which have written the numbers and moved others: here torch's
and MPI's. A block has nothing in between, as most benchmarks do it: caches and scheduler are at their best.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from ringreduce.bench.job import Job
from ringreduce.bench.turns import Effort, Timing, summary, take_turns

# Aim of a batch, and the most calls in it: long beside what a barrier and a clock add.
BATCH = (1e-3, 100)
# The same where ranks leave the barrier with a scheduler's time slices between them, some ms each.
SCATTERED_BATCH = (50e-3, 1000)
# Calls of a turn, where they are short.
CALLS = 50

Span = tuple[float, float]  # begin and end on this rank


@dataclass(frozen=True)
class Contender:
    """Something to time. `rewrite` fills the inputs with a value; `call` is what is timed."""

    name: str
    rewrite: Callable[[int], Any]
    call: Callable[[], Any]


def alternate(
    job: Job,
    contenders: Sequence[Contender],
    effort: Effort,
    short: bool = False,
    blocks: bool = False,
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> dict[str, Timing]:
    """Time all contenders, on all ranks together.

    Args:
        short: whether calls are so short that a turn takes many.
        blocks: whether these come one after the other, without anything in between.
    """
    if not blocks:
        turns = {one.name: partial(_calls, job, one, CALLS if short else 1) for one in contenders}
        rounds = take_turns(turns, effort, progress, job.longest)
        return {name: summary(job.latencies([*chain(*spans)])) for name, spans in rounds.items()}
    batches = {one.name: _batch(job, one) if short else 1 for one in contenders}
    samples = {one.name: partial(_sample, job, one, batches[one.name]) for one in contenders}
    spans = take_turns(samples, effort, progress, job.longest)
    return {name: summary(job.durations(values), batches[name]) for name, values in spans.items()}


def _calls(job: Job, one: Contender, calls: int) -> list[Span]:
    rewrite, call, clock = one.rewrite, one.call, time.perf_counter
    spans = []
    for _ in range(calls):
        rewrite(1)
        job.barrier()
        begin = clock()
        call()
        spans.append((begin, clock()))
    return spans


def _sample(job: Job, one: Contender, batch: int) -> Span:
    one.rewrite(0 if batch > 1 else 1)  # sums of zeros do not overflow, however often
    call = one.call
    job.barrier()
    begin = time.perf_counter()
    for _ in range(batch):
        call()
    return begin, time.perf_counter()


def _batch(job: Job, one: Contender) -> int:
    """Calls in a sample, the same on all ranks.

    What a call takes is seen in a batch: alone it is short beside the barrier.
    """
    (aim, most), batch = SCATTERED_BATCH if job.scattered else BATCH, 1
    while batch < most:
        fastest = min(job.durations([_sample(job, one, batch) for _ in range(3)]))
        if fastest > aim / 2:
            break
        batch = min(most, max(2 * batch, int(batch * aim / fastest)))
    return batch
