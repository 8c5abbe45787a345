"""Pictures of results. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ringreduce.bench.step import StepRow
from ringreduce.bench.units import show_size

SUFFIXES = (".png", ".svg", ".pdf")
# Colours that stay apart for colour-blind readers (Okabe and Ito), one a library or mode.
_COLOURS = {
    "ringreduce": "#0072B2", "arena": "#56B4E9", "memcpy": "#7F7F7F", "mpi": "#D55E00", "gloo": "#E69F00",
    "none": "#7F7F7F", "bf16": "#56B4E9", "ddp": "#E69F00",
}  # fmt: skip
_DPI = 150


def lines(
    path: Path, title: str, curves: Mapping[str, Sequence[tuple[int, float]]], limit: float | None = None
) -> None:
    """Bus bandwidth by size, both logarithmic, one line a library.

    Args:
        curves: library -> (bytes, bytes/s) by ascending size.
        limit: bytes/s of a horizontal line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        dashed = "--" if name == "memcpy" else "-"
        x, y = [size for size, _ in points], [rate / 1e9 for _, rate in points]
        axes.plot(x, y, dashed, marker="o", markersize=4, label=name, color=_COLOURS[name])
    if limit:
        axes.axhline(limit / 1e9, linestyle="--", color="#7F7F7F", label="link")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({size for points in curves.values() for size, _ in points})
    axes.set_xticks(sizes, [show_size(size) for size in sizes])
    axes.minorticks_off()
    axes.set(title=title, xlabel="bytes", ylabel="bus bandwidth, GB/s")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=_DPI)


def steps(path: Path, title: str, rows: Sequence[StepRow]) -> None:
    """Time of a step: a group of bars a model, one bar a mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    models, modes = (list(dict.fromkeys(names)) for names in zip(*((row.model, row.mode) for row in rows), strict=True))
    width = 0.8 / len(modes)
    for index, mode in enumerate(modes):
        own = [row for row in rows if row.mode == mode]
        places = [models.index(row.model) + (index - (len(modes) - 1) / 2) * width for row in own]
        values = [row.timing.median * 1e3 for row in own]
        drawn = axes.bar(places, values, width * 0.95, label=mode, color=_COLOURS[mode])
        axes.bar_label(drawn, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(models)), models)
    axes.set(title=title, ylabel="ms a step")
    axes.legend(ncols=4)
    figure.savefig(path, dpi=_DPI)
