"""The picture of benchmarks/gpu.py: the kernels' share of the copy, host time, steps. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.on_gpu.kernels import KernelRow
from benchmarks.on_gpu.step import GpuStepRow
from benchmarks.on_gpu.submission import SubmissionRow
from ringreduce.bench.units import show_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHERS, _LIMIT = "#0072B2", "#7F7F7F", "#D55E00"


def draw(
    path: Path,
    title: str,
    kernels: Sequence[KernelRow],
    submission: Sequence[SubmissionRow],
    steps: Sequence[GpuStepRow],
) -> None:
    """One panel for each part that was measured; a mark where a line must get to."""
    from matplotlib.figure import Figure

    panels: list[Callable[[Axes], None]] = []
    if kernels:
        panels.append(lambda axes: _kernels(axes, kernels))
    if submission:
        panels.append(lambda axes: _submission(axes, submission))
    if steps:
        panels.append(lambda axes: _steps(axes, steps))
    longest = max(len(kernels), len(submission), len(steps))
    figure = Figure(figsize=(7 * len(panels), 2 + 0.4 * longest), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _kernels(axes: Axes, rows: Sequence[KernelRow]) -> None:
    values = {f"{row.kernel}, {row.load}": 100 * row.share for row in rows}
    limits = [None if row.target is None else 100 * row.target for row in rows]
    _bars(axes, "% of a copy's bandwidth", values, [True] * len(rows), limits, "%.0f%%")


def _submission(axes: Axes, rows: Sequence[SubmissionRow]) -> None:
    values = {_submitted(row): 1e6 * row.submit.median for row in rows}
    limits = [None if row.target is None else 1e6 * row.target for row in rows]
    _bars(axes, "us of host time to submit", values, [row.way in ("plan", "tensor") for row in rows], limits, "%.1f")


def _submitted(row: SubmissionRow) -> str:
    return f"{row.way}, {show_size(row.nbytes)}, {_ranks(row.ranks)}"


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def _steps(axes: Axes, rows: Sequence[GpuStepRow]) -> None:
    values = {f"{row.model}, {_ranks(row.ranks)}, {row.mode}": 1e3 * row.timing.median for row in rows}
    _bars(axes, "ms a step", values, [row.mode == "ringreduce" for row in rows], [None] * len(rows), "%.2f")


def _bars(
    axes: Axes, label: str, values: Mapping[str, float], ours: Sequence[bool], limits: Sequence[float | None], text: str
) -> None:
    places = range(len(values))
    drawn = axes.barh(places, list(values.values()), color=[_OURS if one else _OTHERS for one in ours])
    axes.bar_label(drawn, fmt=text, padding=2, fontsize=8)
    for place, limit in zip(places, limits, strict=True):
        if limit is not None:
            axes.plot([limit, limit], [place - 0.4, place + 0.4], color=_LIMIT)
    axes.set_yticks(places, list(values))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(label)
