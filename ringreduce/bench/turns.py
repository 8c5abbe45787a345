"""The one loop: what is compared takes turns, so that whatever disturbs the machine hits all alike.

    warm up   round 1   round 2
    A B C     A B C     A B C   ...
              │
              └─ one sample

What a sample is, the caller says: a call or many of one library (measure.py), a step of training
(step.py), a whole job (jobs.py).
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

FEWEST_ROUNDS = 5

Sample = TypeVar("Sample")


class Progress(Protocol):
    """Where rank 0 shows how far it is. `step` is called between samples only."""

    def begin(self, what: str) -> None: ...
    def step(self, done: int, of: int) -> None: ...


@dataclass(frozen=True)
class Effort:
    """How long to measure what takes turns.

    Args:
        repeats: most rounds.
        seconds: budget of all rounds, which cuts them down to `fewest`, no further.
        warm_up: rounds before, which are thrown away.
    """

    repeats: int
    seconds: float = math.inf
    fewest: int = FEWEST_ROUNDS
    warm_up: int = 1

    def rounds(self, cost: float) -> int:
        """How many there are, where one takes `cost` seconds."""
        affordable = math.inf if cost <= 0 else self.seconds / cost
        return int(min(self.repeats, max(self.fewest, affordable)))


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median and quartiles of `samples` samples of `batch` calls each."""

    median: float
    low: float
    high: float
    samples: int
    batch: int


def take_turns(
    samples: Mapping[str, Callable[[], Sample]],
    effort: Effort,
    progress: Callable[[int, int], Any] = lambda done, of: None,
    agree: Callable[[float], float] = lambda cost: cost,
) -> dict[str, list[Sample]]:
    """Take a sample of each, round after round. The first round that counts tells how many there is time for.

    Args:
        progress: is told rounds done and planned.
        agree: makes of every rank's cost of a round the same number, where ranks take turns together.

    Returns: name -> its samples, by round.
    """
    taken: dict[str, list[Sample]] = {name: [] for name in samples}
    done, rounds = -effort.warm_up, 1
    gc.collect()
    gc.disable()
    try:
        while done < rounds:
            begin = time.perf_counter()
            for name, sample in samples.items():
                one = sample()
                if done >= 0:
                    taken[name].append(one)
            if done == 0:
                rounds = effort.rounds(agree(time.perf_counter() - begin))
            done += 1
            progress(max(0, done), rounds)
    finally:
        gc.enable()
    return taken


def summary(durations: Sequence[float], batch: int = 1) -> Timing:
    """Of samples, each as long as `batch` calls."""
    seconds = [duration / batch for duration in durations]
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Timing(median, low, high, len(seconds), batch)
