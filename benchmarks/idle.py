"""What an idle `init()` does to a process that calls it and then trains on its own.

    python benchmarks/idle.py

    warm up ─ steps ─ init(), or nothing ─ warm up ─ steps ─ sleep        one process

Two processes differ by more than what is looked for here: where memory lies changes a step by
several percent. So a process is compared with itself; one that does not call `init()` tells
what else changes in the meantime. They take turns.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))  # before any other `benchmarks`

import ringreduce as rr
from ringreduce import cli
from ringreduce.bench.jobs import run_in_turns
from ringreduce.bench.machine import cpu_model
from ringreduce.bench.models import MODELS
from ringreduce.bench.report import Report
from ringreduce.bench.step import WARM_UP, Trainer
from ringreduce.bench.turns import Effort, Timing, summary, take_turns
from ringreduce.bench.units import show_time

ROUNDS = 6  # at least: the range of so many covers the median with 97%
MODEL = "gpt"  # its step does more arithmetic and depends less on memory: it varies less
SLEEP = 5.0  # seconds
SETTLE = 1.0  # torch's threads spin for a while after their work
KINDS = ("plain", "init")


@dataclass(frozen=True)
class Idle:
    """What `init()` does."""

    effect: float  # of a step's time, with init() relative to without: 0.01 is 1% longer
    low: float  # confidence interval of the median over rounds, 95% or what `confidence` says
    high: float
    confidence: float
    cpu: float  # CPU seconds a second, of all threads, while the process sleeps
    step: Timing  # without init()
    effects: list[float]  # of each round


def measure(kind: str, model: str, steps: int, sleep: float) -> dict[str, float]:
    """Medians of a step, before and after, and the CPU time of a second's sleep."""
    trainer = Trainer(MODELS[model], 1)

    def sample() -> float:
        begin = time.perf_counter()
        trainer.step()
        return time.perf_counter() - begin

    def median() -> float:
        return statistics.median(take_turns({"step": sample}, Effort(steps, warm_up=WARM_UP))["step"])

    before = median()
    if kind == "init":
        rr.init()
    return {"before": before, "after": median(), "cpu": idle_cpu(sleep) if kind == "init" else 0.0}


def idle_cpu(seconds: float) -> float:
    """CPU seconds that this process, all of its threads, uses a second while it sleeps."""
    time.sleep(SETTLE)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / seconds


def idle_of(plain: Sequence[Mapping[str, float]], init: Sequence[Mapping[str, float]]) -> Idle:
    """From what the processes of each round measured."""

    def change(one: Mapping[str, float]) -> float:
        return one["after"] / one["before"]

    effects = [change(with_) / change(without) - 1 for without, with_ in zip(plain, init, strict=True)]
    low, high, confidence = confidence_of_median(effects)
    before = summary([one["before"] for one in (*plain, *init)])
    cpu = statistics.median(one["cpu"] for one in init)
    return Idle(statistics.median(effects), low, high, confidence, cpu, before, effects)


def confidence_of_median(values: Sequence[float], wanted: float = 0.95) -> tuple[float, float, float]:
    """Low, high and the probability that the median lies between, whatever the distribution.

    From the binomial distribution: each value is above the median or below, as a coin falls.
    The narrowest interval that reaches `wanted`, or the range of all values.
    """
    ordered, n = sorted(values), len(values)
    cut, outside = 0, 2 * 0.5**n
    while outside + 2 * math.comb(n, cut + 1) * 0.5**n <= 1 - wanted:
        cut += 1
        outside += 2 * math.comb(n, cut) * 0.5**n
    return ordered[cut], ordered[n - 1 - cut], max(0.0, 1 - outside)


def line_of(idle: Idle) -> str:
    """What an idle init() costs."""
    return (
        f"an idle init() changes the step of one process ({show_time(idle.step.median)}) by {100 * idle.effect:+.2f}% "
        f"({100 * idle.confidence:.0f}% sure: {100 * idle.low:+.2f}% to {100 * idle.high:+.2f}%); "
        f"asleep it takes {idle.cpu * 1e3:.2f} ms of CPU time a second"
    )


@click.command()
@click.option("--job", type=click.Choice(KINDS), help="Be one of the processes.")
@click.option("--model", type=click.Choice(list(MODELS)), default=MODEL, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=15, show_default=True, help="Timed in each process.")
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True, help="Most rounds.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="For each of the two processes.")
@click.option("--sleep", type=float, default=SLEEP, show_default=True, help="Seconds in which CPU time is counted.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write everything measured there.")
def idle(
    job: str | None, model: str, steps: int, repeats: int, seconds: float, sleep: float, file: Path | None
) -> None:
    """What an idle init() does to a process that then trains on its own."""
    if job:
        content: dict[str, Any] = dict(measure(job, model, steps, sleep))
    else:
        with Report(0) as shown:
            shown.begin("idle init()")
            own = ["--model", model, "--steps", str(steps), "--sleep", str(sleep)]
            commands = {kind: [sys.executable, __file__, *own, "--job", kind] for kind in KINDS}
            turns = run_in_turns(commands, Effort(repeats, seconds), shown.step, ROUNDS)
            found = idle_of(turns["plain"], turns["init"])
            shown.show(line_of(found))
            content = {"benchmark": "idle", "model": model, "cpu_model": cpu_model(), **asdict(found)}
    if file:
        file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(cli.run(idle, "benchmarks/idle.py"))
