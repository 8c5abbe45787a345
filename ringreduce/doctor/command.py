"""The command: options, a deadline, and who prints."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence

import ringreduce as rr
from ringreduce import _state
from ringreduce.doctor import checks, facts, show

_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def main(arguments: Sequence[str]) -> int:
    """Look, try, print on rank 0; 0 only if all that should work works."""
    options = _parse(arguments)
    deadline = _Deadline(options.timeout)
    machine = facts.of_machine()
    own = list(checks.run(deadline.begin))
    deadline.begin("gathering what the ranks found")
    gathered = [(facts.of_rank(), own)]
    if rr.is_initialized():
        gathered = rr.allgather_object(gathered[0])
    deadline.end()
    found = checks.merge([of_rank for _, of_rank in gathered])
    if (rr.rank() if rr.is_initialized() else _launched_rank()) == 0:
        print((show.as_json if options.json else show.as_text)(machine, [rank for rank, _ in gathered], found))
    rr.shutdown()
    return 0 if show.works(found) else 1


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ringreduce doctor",
        description="Say what there is on this machine, and try each path with a small real collective. "
        "Under mpirun: on all ranks. Exit status 0 only if all that should work works.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    parser.add_argument(
        "--timeout", type=float, default=60, metavar="SECONDS", help="longest time that each check may take (60)"
    )
    options = parser.parse_args(arguments)
    if options.timeout <= 0:
        parser.error("--timeout: expected a number of seconds above 0")
    return options


def _launched_rank() -> int:
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


class _Deadline:
    """Ends the process where a check hangs, with what it hung in."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def begin(self, name: str) -> None:
        """`name` may take so long from here on."""
        self.end()
        self._timer = threading.Timer(self._seconds, self._expired, [name])
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Nothing is under way."""
        if self._timer is not None:
            self._timer.cancel()

    def _expired(self, name: str) -> None:
        where = _state.describe()
        print(f"ringreduce doctor: {name}: no end after {self._seconds:g} s\n{where}", file=sys.stderr, flush=True)
        os._exit(1)
