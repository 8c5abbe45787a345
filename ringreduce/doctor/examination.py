"""The examination itself, where what ringreduce needs is there: facts, checks, a deadline, and who prints."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

import ringreduce as rr
from ringreduce._runtime import hang_report
from ringreduce.doctor import checks, facts, show
from ringreduce.doctor.check import Check
from ringreduce.doctor.command import launched_rank


def run(needs: Sequence[Check], json: bool, timeout: float) -> int:
    """Look, try, print on rank 0; 0 only if all that should work works. `needs` was looked at already."""
    deadline = _Deadline(timeout)
    machine = facts.of_machine()
    own = [*needs, *checks.run(deadline.begin)]
    deadline.begin("gathering what the ranks found")
    gathered = [(facts.of_rank(), own)]
    if rr.is_initialized():
        gathered = rr.allgather_object(gathered[0])
    deadline.end()
    found = checks.merge([of_rank for _, of_rank in gathered])
    if (rr.rank() if rr.is_initialized() else launched_rank()) == 0:
        print((show.as_json if json else show.as_text)(machine, [rank for rank, _ in gathered], found))
    rr.shutdown()
    return 0 if show.works(found) else 1


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
        where = hang_report.describe()
        print(f"ringreduce doctor: {name}: no end after {self._seconds:g} s\n{where}", file=sys.stderr, flush=True)
        os._exit(1)
