"""A process that times its training step before and after `init()`, for turns.measure_idle.

    python -m ringreduce.bench.idle MODEL STEPS init|plain

    warm up ─ STEPS steps ─ init(), or nothing ─ warm up ─ STEPS steps ─ sleep

Two processes differ by more than what is looked for here: where memory lies changes a step by
several percent. So a process is compared with itself; one that does not call `init()` tells
what else changes in the meantime.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import ringreduce as rr
from ringreduce.bench.models import MODELS
from ringreduce.bench.step import WARM_UP, Trainer

SLEEP = 5.0  # seconds
SETTLE = 1.0  # torch's threads spin for a while after their work


def main(name: str, steps: int, kind: str) -> None:
    """Print the medians of a step, before and after, and the CPU time of a second's sleep."""
    trainer = Trainer(MODELS[name], 1)
    before = _median(trainer, steps)
    if kind == "init":
        rr.init()
    after = _median(trainer, steps)
    print(json.dumps({"before": before, "after": after, "cpu": idle_cpu() if kind == "init" else 0.0}))


def _median(trainer: Trainer, steps: int) -> float:
    times = []
    for _ in range(WARM_UP + steps):
        begin = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP:])


def idle_cpu(seconds: float = SLEEP) -> float:
    """CPU seconds that this process, all of its threads, uses a second while it sleeps."""
    time.sleep(SETTLE)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / seconds


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
