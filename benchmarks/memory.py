"""What training adds to memory: what a rank holds at the peak of a step, mode by mode, and page faults.

    python benchmarks/memory.py
    python benchmarks/memory.py --models mlp --modes none,ringreduce --repeats 1

Every model and mode runs in jobs of its own, which take turns, as in `ringreduce bench step`.
"""

from __future__ import annotations

import operator
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # before any other `benchmarks`

from benchmarks.memory_use import Peak, Use
from ringreduce import cli
from ringreduce.bench import launch, machine
from ringreduce.bench.job import Job, joined
from ringreduce.bench.jobs import run_in_turns
from ringreduce.bench.models import MODELS
from ringreduce.bench.options import (
    STEP_BYTES,
    Common,
    check_memory,
    check_ranks,
    is_launched,
    models_option,
    options,
    require_mpirun,
    some,
)
from ringreduce.bench.report import Report
from ringreduce.bench.step import MODES, WARM_UP, Trainer
from ringreduce.bench.tables import new_table


@dataclass(frozen=True)
class MemoryRow:
    """One mode on one model; of the rank with most of each, where there were several jobs their median."""

    model: str
    parameters: int
    mode: str
    faults: float  # page faults a step that need no disk
    use: Use
    added: Use | None = None  # more than without communication

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes."""
        return asdict(self) | {"use": self.use._asdict(), "added": self.added and self.added._asdict()}


def look(job: Job, model: str, mode: str, steps: int) -> MemoryRow:
    """Train one model in one mode. Collective over all ranks."""
    if MODES[mode].torch:
        job.start_torch()
    trainer = Trainer(MODELS[model], 1 + job.rank, MODES[mode])
    for _ in range(WARM_UP):
        trainer.step()
    before = _faults()
    for _ in range(steps):
        trainer.step()
    faults = (_faults() - before) / steps
    peak = Peak(trainer.module.parameters(), lasting=MODES[mode].library)
    trainer.step()
    peak()
    peak.remove()
    faults, *use = job.largest([faults, *peak.use])
    return MemoryRow(model, trainer.parameters, mode, faults, Use(*map(int, use)))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def rows_of(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[MemoryRow]:
    """A row a mode of one model, from its jobs' rows: medians over the rounds."""
    rows = []
    for mode, jobs in results.items():
        use = Use(*(int(statistics.median(job["use"][name] for job in jobs)) for name in Use._fields))
        faults = statistics.median(job["faults"] for job in jobs)
        rows.append(MemoryRow(jobs[0]["model"], jobs[0]["parameters"], mode, faults, use))
    plain = next((row.use for row in rows if row.mode == "none"), None)
    if plain is None:
        return rows
    return [replace(row, added=Use(*map(operator.sub, row.use, plain))) for row in rows]


def table_of(rows: Sequence[MemoryRow]) -> Table:
    """A line for each model and mode."""
    table = new_table(["model", "parameters", "mode", "faults", "MiB", "added", "beside", "resident"])
    for row in rows:
        own = row.model, f"{row.parameters / 1e6:.1f}M", row.mode, f"{row.faults:.0f}", f"{row.use.taken / 2**20:.0f}"
        table.add_row(*own, *(f"{nbytes / 2**20:+.1f}" for nbytes in row.added or ()))
    return table


def finish(shown: Report, common: Common, info: dict[str, Any], ranks: int, rows: Sequence[MemoryRow]) -> None:
    """Table and JSON."""
    shown.show_machine(info)
    content = {"benchmark": "memory", "ranks": ranks, "machine": info}
    shown.finish(common, [f"memory of a training step, {ranks} ranks", table_of(rows)], content, rows)


@click.command()
@options(
    models_option,
    some("--modes", MODES, "mode", "As in `ringreduce bench step`."),
    click.option(
        "--steps", type=click.IntRange(min=1), default=15, show_default=True, help="In which to count faults."
    ),
    repeats=3,
    seconds=60.0,
    drawn=False,
)
def memory(common: Common, models: list[str], modes: list[str], steps: int) -> None:
    """What training adds to memory, beside plain torch."""
    ranks = check_ranks(common.np)
    launched = is_launched(models, modes)
    check_memory("a training step", STEP_BYTES, ranks)
    if launched:
        with joined(MODES[modes[0]].library) as job, Report(job.rank) as shown:
            info = machine.describe() | {"busy": machine.busy()}
            finish(shown, common, info, ranks, [look(job, models[0], modes[0], steps)])
        return
    mpirun, rows, info = require_mpirun(), [], {}
    with Report(0) as shown:
        for model in models:
            shown.begin(f"memory of {model}")
            program = [__file__, "--models", model, "--steps", str(steps), "--modes"]
            commands = {mode: launch.command(mpirun, ranks, *program, mode) for mode in modes}
            turns = run_in_turns(commands, common.effort, shown.step)
            info = info or next(iter(turns.values()))[0]["machine"]
            rows += rows_of({mode: [one["results"][0] for one in contents] for mode, contents in turns.items()})
        finish(shown, common, info, ranks, rows)


if __name__ == "__main__":
    sys.exit(cli.run(memory, "benchmarks/memory.py"))
