"""The commands: their options, and what they print."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ringreduce._runtime import stacks as stack_texts
from ringreduce._runtime.processes import Look
from ringreduce._runtime.stall_report import Report
from ringreduce.observe import jobs

_NONE = "no rank of a job of this user runs on this host"


@click.command()
@click.argument("pid", type=int, required=False)
def stacks(pid: int | None) -> None:
    """What the ranks on this host do, and their Python stacks; PID: of one of them only.

    It asks processes that hold the GIL or are stuck in C, too. Of a stopped one it says that it is stopped.
    """
    found = jobs.find(pid)
    if not found:
        raise click.ClickException(_NONE if pid is None else f"process {pid} is no rank of a job of this user")
    for job in found:
        report = job.look(with_stacks=True)
        click.echo(f"a job of {job.size} rank{'' if job.size == 1 else 's'}, {job.local_size} of them on this host")
        for rank, line in zip(report.pages, report.each(), strict=True):
            click.echo(f"  {line} (pid {job.pids[rank]})")
        click.echo("Python stacks, most recent call first:")
        for line in stack_texts.show(report.texts):
            click.echo(f"  {line}")


@click.command()
@click.option("--interval", default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look once, and end.")
def top(interval: float, once: bool) -> None:
    """A line for each rank on this host: what it does, and whom it waits for."""
    console = Console()
    if once or not console.is_terminal:
        console = console if console.is_terminal else Console(width=200)  # for a file, or another program
        console.print(_table(jobs.find(), min(interval, 0.2)))
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            begin = time.monotonic()
            live.update(_table(jobs.find(), 0.2), refresh=True)
            time.sleep(max(0.0, interval - (time.monotonic() - begin)))


def _table(found: list[jobs.Job], seconds: float) -> Table:
    table = Table(title=None if found else _NONE, box=None)
    for name, justify in (
        ("rank", "right"), ("pid", "right"), ("step", "right"), ("CPU", "right"),
        ("state", "left"), ("waits for", "left"), ("since", "right"), ("place", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for job in found:
        report = job.look(with_stacks=False, seconds=seconds)
        for rank in report.pages:
            table.add_row(*_row(report, rank))
    return table


def _state(page: dict[str, Any], look: Look) -> str:
    if look.ended or look.stopped:
        return "stopped" if look.stopped else "ended"
    if page["state"] != "running" or page["waits"]:
        return "waits" if page["waits"] else str(page["state"])
    if look.cores >= 0.02:
        return "computes"
    return f"sleeps in {look.wchan}" if look.wchan else "sleeps"


def _row(report: Report, rank: int) -> list[str]:
    page, look = report.pages[rank], report.looks[rank]
    wait = page["waits"][0] if page["waits"] else None
    since = f"{(time.monotonic_ns() - wait['since_ns']) / 1e9:.1f} s" if wait else ""
    return [
        str(rank), str(report.pids[rank]), str(page["steps"]), f"{look.cores:.0%}", _state(page, look),
        wait["title"] if wait else "", since, wait["place"] if wait else "",
    ]  # fmt: skip
