"""The tables of benchmarks/gpu.py. "must" is what docs/performance.md says it must reach; red where it is missed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from benchmarks.on_gpu.kernels import KernelRow
from benchmarks.on_gpu.step import LEAST_OF_DDP, MOST_OF_NONE, GpuStepRow
from benchmarks.on_gpu.submission import SubmissionRow
from ringreduce.bench.tables import new_table, quartiles
from ringreduce.bench.units import show_number, show_size, show_time


def kernel_table(rows: Sequence[KernelRow]) -> Table:
    """A line for each case."""
    table = new_table(["kernel", "load", "time", "GB/s", "copy GB/s", "of the copy", "must"])
    for row in rows:
        table.add_row(
            row.kernel,
            row.load,
            show_time(row.timing.median),
            show_number(row.rate / 1e9),
            show_number(row.nbytes / row.copy.median / 1e9),
            _judged(f"{100 * row.share:.1f}%", row.is_met),
            "" if row.target is None else f">= {100 * row.target:.0f}%",
        )
    return table


def submission_table(rows: Sequence[SubmissionRow]) -> Table:
    """A line for each way, size and number of ranks."""
    table = new_table(["size", "ranks", "by", "submit", "quartiles", "must", "wait", "both"])
    for row in rows:
        submit, wait = row.submit, row.wait
        table.add_row(
            show_size(row.nbytes),
            str(row.ranks),
            row.way,
            _judged(show_time(submit.median), row.is_met),
            quartiles(submit),
            "" if row.target is None else f"<= {show_time(row.target)}",
            show_time(wait.median),
            show_time(submit.median + wait.median),
        )
    return table


def step_table(rows: Sequence[GpuStepRow]) -> Table:
    """A line for each model, number of ranks and mode."""
    table = new_table(
        ["model", "parameters", "ranks", "mode", "step", "quartiles", "of none", "must", "ddp / this", "must",
         "waits", "MiB"]
    )  # fmt: skip
    times = {(row.model, row.ranks, row.mode): row.timing.median for row in rows}
    plain = {(row.model, row.ranks): row.waits for row in rows if row.mode == "none"}
    for row in rows:
        unavoidable = plain.get((row.model, row.ranks)) or 0
        none, ddp = (times.get((row.model, row.ranks, mode)) for mode in ("none", "ddp"))
        median = row.timing.median
        ours = row.mode == "ringreduce"
        alone, shared = ours and row.ranks == 1, ours and row.shared
        table.add_row(
            row.model,
            f"{row.parameters / 1e6:.1f}M",
            f"{row.ranks}{' on one GPU' if row.shared else ''}",
            row.mode,
            show_time(median),
            quartiles(row.timing),
            _judged(f"{median / none:.3f}", median / none <= MOST_OF_NONE if alone else None) if none else "-",
            f"<= {MOST_OF_NONE}" if alone else "",
            _judged(f"{ddp / median:.3f}", ddp / median >= LEAST_OF_DDP if shared else None) if ddp else "-",
            f">= {LEAST_OF_DDP:.0f}" if shared else "",
            "-" if row.waits is None else _judged(f"{row.waits:g}", row.waits <= unavoidable if ours else None),
            f"{row.memory / 2**20:.0f}",
        )
    return table


def _judged(text: str, is_met: bool | None) -> Text:
    """Green or red where there is something to reach."""
    return Text(text, style="" if is_met is None else "green" if is_met else "red")
