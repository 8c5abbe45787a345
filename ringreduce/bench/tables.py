"""The tables that are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ringreduce.bench.collectives import OURS
from ringreduce.bench.hosts import HostRow
from ringreduce.bench.step import StepRow
from ringreduce.bench.sweep import Row
from ringreduce.bench.turns import Timing
from ringreduce.bench.units import show_number, show_size, show_time

LABELS = {"ringreduce": "tensor", "arena": "arena"}  # what our library works on


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
    table = new_table(["model", "parameters", "mode", "step", "quartiles", "of none", "ddp / this"])
    times = {(row.model, row.mode): row.timing.median for row in rows}
    for row in rows:
        none, ddp = times.get((row.model, "none")), times.get((row.model, "ddp"))
        median = row.timing.median
        table.add_row(
            row.model,
            f"{row.parameters / 1e6:.1f}M",
            row.mode,
            show_time(median),
            quartiles(row.timing),
            f"{median / none:.3f}" if none else "-",
            ratio(median, ddp),
        )
    return table


def quartiles(timing: Timing) -> str:
    """Lower and upper."""
    return f"{show_time(timing.low)} - {show_time(timing.high)}"


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
