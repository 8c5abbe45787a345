"""Whole jobs that take turns: what is measured in processes of their own.

    round 1: none  ringreduce  bf16  ddp  │  round 2: none  ringreduce ...     each is an mpirun

A job starts, warms up, measures and ends. So every mode finds memory and caches as a program
would, and whatever disturbs the machine for a while hits all modes alike.
"""

from __future__ import annotations

import json
import math
import operator
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ringreduce.bench import launch
from ringreduce.bench.measure import Effort, Timing, summary
from ringreduce.bench.memory import Use
from ringreduce.bench.step import StepRow
from ringreduce.bench.sweep import Progress

FEWEST_ROUNDS = 3
IDLE_ROUNDS = 6  # the range of so many covers the median with 97%
IDLE_MODEL = "gpt"  # its step does more arithmetic and depends less on memory: it varies less

Result = TypeVar("Result")


def take_turns(
    jobs: Mapping[str, Callable[[], Result]], effort: Effort, fewest: int, progress: Callable[[int, int], Any]
) -> dict[str, list[Result]]:
    """Run all jobs, in rounds; `effort.seconds` is for each of them, and starting counts.

    Returns: job -> what it returned, by round. There are `fewest` rounds at least, unless
    `effort.repeats` asks for less.
    """
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    begin, rounds, done = time.perf_counter(), 1, 0
    while done < rounds:
        for name, job in jobs.items():
            results[name].append(job())
        done += 1
        if done == 1:
            affordable = int(effort.seconds * len(jobs) / (time.perf_counter() - begin))
            rounds = min(effort.repeats, max(fewest, affordable))
        progress(done, rounds)
    return results


def measure_steps(
    mpirun: str, ranks: int, models: Sequence[str], modes: Sequence[str], steps: int, effort: Effort, progress: Progress
) -> tuple[list[StepRow], dict[str, Any]]:
    """Every model in every mode. Returns rows, and the machine as the first job describes it."""
    rows: list[StepRow] = []
    machine: dict[str, Any] = {}

    def job_of(model: str, mode: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            content = _step_job(mpirun, ranks, model, mode, steps)
            machine.update(machine or content["machine"])
            (row,) = content["results"]
            return dict(row)

        return run

    for model in models:
        progress.begin(f"step of {model}")
        results = take_turns({mode: job_of(model, mode) for mode in modes}, effort, FEWEST_ROUNDS, progress.step)
        rows += rows_of(model, results)
    return rows, machine


def rows_of(model: str, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[StepRow]:
    """A row a mode from its jobs' rows: medians over the rounds."""
    rows = []
    for mode, jobs in results.items():
        medians = [job["median"] for job in jobs]
        faults, *memory = (statistics.median(job[key] for job in jobs) for key in ("faults", *Use._fields))
        use = Use(*map(int, memory))
        rows.append(StepRow(model, jobs[0]["parameters"], mode, summary(medians), faults, use, jobs=medians))
    plain = next((row.memory for row in rows if row.mode == "none"), None)
    if plain is None:
        return rows
    return [replace(row, added=Use(*map(operator.sub, row.memory, plain))) for row in rows]


def _step_job(mpirun: str, ranks: int, model: str, mode: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ringreduce-bench-") as directory:
        file = Path(directory) / "step.json"
        options = ["--models", model, "--modes", mode, "--steps", str(steps), "--json", str(file)]
        launch.run(launch.command(mpirun, ranks, "bench", "step", *options))
        content: dict[str, Any] = json.loads(file.read_text())
    return content


@dataclass(frozen=True)
class Idle:
    """What `init()` does to a process that calls it and then trains on its own."""

    effect: float  # of a step's time, with init() relative to without: 0.01 is 1% longer
    low: float  # confidence interval of the median over rounds, 95% or what `confidence` says
    high: float
    confidence: float
    cpu: float  # CPU seconds a second, of all threads, while the process sleeps
    step: Timing  # without init()
    effects: list[float]  # of each round

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds."""
        return vars(self) | {"step": vars(self.step), "model": IDLE_MODEL}


def measure_idle(steps: int, effort: Effort, progress: Progress) -> Idle:
    """Processes that time steps before and after `init()`, and others that do not call it."""
    progress.begin("idle init()")

    def job(kind: str) -> Callable[[], dict[str, Any]]:
        command = [sys.executable, "-m", "ringreduce.bench.idle", IDLE_MODEL, str(steps), kind]
        return lambda: dict(json.loads(launch.run(command)))

    results = take_turns({kind: job(kind) for kind in ("plain", "init")}, effort, IDLE_ROUNDS, progress.step)
    return idle_of(results["plain"], results["init"])


def idle_of(plain: Sequence[Mapping[str, float]], init: Sequence[Mapping[str, float]]) -> Idle:
    """From what the processes of each round printed (idle.py)."""

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
