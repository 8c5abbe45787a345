"""What rank 0 shows: a progress bar on terminals, the machine, the result; and the JSON file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ringreduce.bench import launch
from ringreduce.bench.options import Common

BUSY = 0.1  # share of the cores: from here on other programs are mentioned
WIDE = 200  # columns, where the output is no terminal


class Report:
    """The progress bar and everything printed and written; on other ranks than 0 it does nothing.

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

    def show_machine(self, machine: dict[str, Any]) -> None:
        """The lines above a table: what was measured on, and whether others use it."""
        self.show(
            f"{machine['cpu']}, {machine['cores']} cores; ringreduce {machine['ringreduce']} ({machine['kernels']}), "
            f"torch {machine['torch']}, {machine['mpi']}"
        )
        if machine["busy"] > BUSY:
            busy = f"{100 * machine['busy']:.0f}%"
            self.show(f"note: other programs use {busy} of this machine; expect odd results")

    def finish(
        self, common: Common, tables: Iterable[str | Table], content: dict[str, Any], rows: Iterable[Any],
        draw: Callable[[Path], None] | None = None,
    ) -> None:  # fmt: skip
        """Show the result, and write what `--json` and `--plot` ask for.

        Args:
            content: for JSON: "benchmark", "machine", "ranks", and more.
            rows: what was measured.
            draw: the picture.
        """
        self.show(*tables, *content.get("notes", ()))
        if self.is_shown and common.json:
            save(common.json, content, rows)
        if self.is_shown and common.plot and draw:
            draw(common.plot)


def save(path: Path, content: dict[str, Any], rows: Iterable[Any]) -> None:
    """Everything there is to know about a run, as JSON. Times in seconds, sizes in bytes."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "ringreduce")
    run = {"command": [program, *sys.argv[1:]], "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    path.write_text(json.dumps(run | content | {"results": [row.as_dict() for row in rows]}, indent=1) + "\n")
