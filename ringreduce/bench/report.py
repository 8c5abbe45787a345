"""What rank 0 shows: a progress bar on terminals, tables, and the JSON file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ringreduce.bench import launch
from ringreduce.bench.collectives import OURS
from ringreduce.bench.hosts import HostRow
from ringreduce.bench.step import StepRow
from ringreduce.bench.sweep import Row
from ringreduce.bench.turns import Idle
from ringreduce.bench.units import show_number, show_size, show_time

LABELS = {"ringreduce": "tensor", "arena": "arena"}  # what our library works on
WIDE = 200  # columns, where the output is no terminal


class Report:
    """The progress bar and everything printed; on other ranks than 0 it does nothing.

    The bar is drawn when `step` is called and at no other time: no thread of its own disturbs
    what is measured.
    """

    def __init__(self, rank: int) -> None:
        self.is_shown = rank == 0
        terminal = launch.has_terminal()
        self.console = Console(force_terminal=terminal, width=None if terminal else WIDE)
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(20),
            TextColumn("round {task.completed}/{task.total}"),
            TimeElapsedColumn(),
        )
        self.bar = Progress(
            *columns,
            console=self.console,
            auto_refresh=False,
            transient=True,
            disable=not (self.is_shown and terminal),
        )
        self.task = self.bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def begin(self, what: str) -> None:
        """A new line of the bar."""
        self.bar.start()
        self.bar.update(self.task, description=what, completed=0, total=None, visible=True)
        self.bar.refresh()

    def step(self, done: int, of: int) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=done, total=of)
        self.bar.refresh()

    def show(self, *what: Any) -> None:
        """Print lines or tables, in the bar's place."""
        self.bar.stop()
        if self.is_shown:
            for one in what:
                self.console.print(one, highlight=False, soft_wrap=isinstance(one, str))


def save(path: Path, benchmark: str, machine: dict[str, Any], ranks: int, rows: Iterable[Any], **more: Any) -> None:
    """Everything there is to know about a run, as JSON. Times in seconds, sizes in bytes."""
    content = {
        "benchmark": benchmark,
        "command": ["ringreduce", *sys.argv[1:]],
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "ranks": ranks,
        "machine": machine,
        **more,
        "results": [row.as_dict() for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def new_table(columns: Sequence[str]) -> Table:
    """An empty one; numbers are to the right."""
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def ratio(ours: float, other: float | None, unit: str = "x") -> Text:
    """How many times longer the other takes; red where it is faster."""
    if other is None:
        return Text("-")
    return Text(f"{show_number(other / ours)}{unit}", style="red" if other < ours else "green")


def collective_table(rows: Sequence[Row]) -> Table:
    """A line for each size and each of our ways; peers' times and ratios beside it."""
    peers = [name for name in dict.fromkeys(row.library for row in rows) if name not in OURS]
    others = [name for name in peers if name != "memcpy"]
    limit = ["memcpy", "limit"] if "memcpy" in peers else []
    heads = [column for name in others for column in (name, "ratio")]
    table = new_table(["size", "in", "time", "algbw", "busbw", *limit, *heads])
    times = {(row.library, row.nbytes): row.timing.median for row in rows}
    for row in rows:
        if row.library not in OURS:
            continue
        ours = row.timing.median
        cells: list[str | Text] = [
            show_size(row.nbytes),
            LABELS[row.library],
            show_time(ours),
            _giga(row.algbw),
            _giga(row.busbw),
        ]
        if limit:
            memcpy = times["memcpy", row.nbytes]
            cells += [show_time(memcpy), f"{100 * memcpy / ours:.0f}%"]
        for name in others:
            other = times.get((name, row.nbytes))
            cells += [show_time(other) if other else "-", ratio(ours, other)]
        table.add_row(*cells)
    return table


def step_table(rows: Sequence[StepRow]) -> Table:
    """A line for each model and mode."""
    step = ["step", "quartiles", "of none", "ddp / this"]
    memory = ["MiB", "added", "beside", "resident"]
    table = new_table(["model", "parameters", "mode", *step, "faults", *memory])
    times = {(row.model, row.mode): row.timing.median for row in rows}
    for row in rows:
        none, ddp = times.get((row.model, "none")), times.get((row.model, "ddp"))
        median, low, high = row.timing.median, row.timing.low, row.timing.high
        table.add_row(
            row.model,
            f"{row.parameters / 1e6:.1f}M",
            row.mode,
            show_time(median),
            f"{show_time(low)} - {show_time(high)}",
            f"{median / none:.3f}" if none else "-",
            ratio(median, ddp),
            f"{row.faults:.0f}",
            f"{row.memory.taken / 2**20:.0f}",
            *(f"{nbytes / 2**20:+.1f}" for nbytes in row.added or ()),
        )
    return table


def idle_line(idle: Idle) -> str:
    """What an idle init() costs."""
    return (
        f"an idle init() changes the step of one process ({show_time(idle.step.median)}) by {100 * idle.effect:+.2f}% "
        f"({100 * idle.confidence:.0f}% sure: {100 * idle.low:+.2f}% to {100 * idle.high:+.2f}%); "
        f"asleep it takes {idle.cpu * 1e3:.2f} ms of CPU time a second"
    )


def hosts_table(rows: Sequence[HostRow], rate: float | None) -> Table:
    """A line for each size and library."""
    table = new_table(["size", "by", "time", "busbw a host", "of the link", "sent / least", "time / ours"])
    times = {(row.library, row.nbytes): row.timing.median for row in rows}
    for row in rows:
        median = row.timing.median
        table.add_row(
            show_size(row.nbytes),
            row.library,
            show_time(median),
            f"{show_number(row.busbw / 1e6)} MB/s",
            f"{100 * row.busbw / rate:.1f}%" if rate else "-",
            f"{row.sent:.3f}" if row.sent is not None else "-",
            "" if row.library in OURS else ratio(times["ringreduce", row.nbytes], median),
        )
    return table


def _giga(rate: float) -> str:
    return show_number(rate / 1e9)
