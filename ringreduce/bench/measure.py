"""Timing contenders fairly: turn by turn, all ranks at once, the slowest rank counts.

    round 1                          round 2
    A     B     C                    A     B     C   ...
    │
    └─ one sample: rewrite the buffers, barrier, begin ─ call × batch ─ end

Contenders take turns call by call, so that whatever disturbs the machine hits all alike.
A sample lasts until the slowest rank is done; what is reported is the median of samples.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ringreduce.bench.job import Job

# Aim of a batch, and the most calls in it: long beside what a barrier and a clock add.
BATCH = (1e-3, 100)
# The same where ranks leave the barrier with a scheduler's time slices between them, some ms each.
SCATTERED_BATCH = (50e-3, 1000)
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Contender:
    """Something to time. `rewrite` fills the inputs with a value; `call` is what is timed."""

    name: str
    rewrite: Callable[[int], Any]
    call: Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and quartiles of `samples` samples of `batch` calls each."""

    median: float
    low: float
    high: float
    samples: int
    batch: int


@dataclass(frozen=True)
class Effort:
    """How long to measure one size.

    Args:
        repeats: most rounds.
        seconds: budget, which cuts the rounds down to FEWEST_ROUNDS, no further.
        batched: whether a sample may hold many calls, without rewriting between them.
    """

    repeats: int
    seconds: float
    batched: bool = False


def alternate(
    job: Job,
    contenders: Sequence[Contender],
    effort: Effort,
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> dict[str, Timing]:
    """Time all contenders, on all ranks together. `progress` is told rounds done and planned."""
    batches = {one.name: _batch(job, one) if effort.batched else 1 for one in contenders}
    spans: dict[str, list[tuple[float, float]]] = {one.name: [] for one in contenders}
    gc.collect()
    gc.disable()
    try:
        begin, rounds, done = time.perf_counter(), 1, 0
        while done < rounds:
            for one in contenders:
                spans[one.name].append(_sample(job, one, batches[one.name]))
            done += 1
            if done == 1:  # the first round warms up, and tells how many there is time for
                spans = {name: [] for name in spans}
                (cost,) = job.largest([time.perf_counter() - begin])
                rounds = 1 + affordable_rounds(effort, cost)
            progress(done, rounds)
    finally:
        gc.enable()
    return {name: summary(job.durations(values), batches[name]) for name, values in spans.items()}


def _sample(job: Job, one: Contender, batch: int) -> tuple[float, float]:
    """Begin and end on this rank."""
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


def affordable_rounds(effort: Effort, cost: float) -> int:
    """How many rounds there are, where one takes `cost` seconds."""
    affordable = max(FEWEST_ROUNDS, int(effort.seconds / cost))
    return min(effort.repeats, affordable)


def summary(durations: Sequence[float], batch: int = 1) -> Timing:
    """Of samples, each as long as `batch` calls."""
    seconds = [duration / batch for duration in durations]
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(median, low, high, len(seconds), batch)
