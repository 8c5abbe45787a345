"""Whole jobs that take turns: what is measured in processes of their own.

    round 1: none  ringreduce  bf16  ddp  │  round 2: none  ringreduce ...     each is an mpirun

A job starts, warms up, measures and ends. So every mode finds memory and caches as a program
would, and whatever disturbs the machine for a while hits all modes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ringreduce.bench import launch
from ringreduce.bench.step import StepRow
from ringreduce.bench.turns import Effort, Progress, summary, take_turns

FEWEST_ROUNDS = 3

Content = Mapping[str, Any]  # of a job's JSON file


def run_in_turns(
    commands: Mapping[str, Sequence[str]],
    effort: Effort,
    progress: Callable[[int, int], Any],
    fewest: int = FEWEST_ROUNDS,
) -> dict[str, list[Content]]:
    """Run the jobs in rounds; `effort.seconds` is for each of them, and starting counts.

    Returns: job -> what it measured, by round. There are `fewest` rounds at least, unless
    `effort.repeats` asks for less.
    """
    jobs = {name: partial(launch.measure, command) for name, command in commands.items()}
    return take_turns(jobs, Effort(effort.repeats, effort.seconds * len(jobs), fewest, warm_up=0), progress)


def measure_steps(
    mpirun: str, ranks: int, models: Sequence[str], modes: Sequence[str], steps: int, effort: Effort, progress: Progress
) -> tuple[list[StepRow], dict[str, Any]]:
    """Every model in every mode. Returns rows, and the machine as the first job describes it."""
    rows: list[StepRow] = []
    machine: dict[str, Any] = {}
    for model in models:
        progress.begin(f"step of {model}")
        command = [*launch.RINGREDUCE, "bench", "step", "--models", model, "--steps", str(steps), "--modes"]
        jobs = {mode: launch.command(mpirun, ranks, *command, mode) for mode in modes}
        for contents in run_in_turns(jobs, effort, progress.step).values():
            rows.append(row_of([content["results"][0] for content in contents]))
            machine = machine or contents[0]["machine"]
    return rows, machine


def row_of(jobs: Sequence[Mapping[str, Any]]) -> StepRow:
    """A mode's row from its jobs': the medians' median."""
    medians = [job["median"] for job in jobs]
    return StepRow(jobs[0]["model"], jobs[0]["parameters"], jobs[0]["mode"], summary(medians), medians)
