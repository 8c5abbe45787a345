"""What processes of this machine do, as the kernel sees them: they need not answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STATES = {"S": "sleeping", "D": "in the kernel", "Z": "ended", "X": "ended"}


@dataclass
class Look:
    """At one process."""

    state: str  # of its main thread, as in /proc/PID/stat; "" for a process that is not there, or cannot be seen
    wchan: str  # the function of the kernel in which that thread sleeps; "" if it does not, or this is not told
    cores: float  # that all its threads together have used meanwhile

    @property
    def stopped(self) -> bool:
        """By a signal or a debugger: it does nothing, and answers nothing."""
        return self.state in ("T", "t")

    @property
    def ended(self) -> bool:
        """Whether it will do nothing any more."""
        return self.state in ("", "Z", "X")

    def __str__(self) -> str:
        if not self.state:
            return "its process has ended"
        if self.stopped:
            return f"it is stopped by a signal (state {self.state})"
        cpu = f"using {self.cores:.0%} of a core" if self.cores >= 0.02 else "using no CPU"
        where = f" in {self.wchan}" if self.wchan else ""
        return f"{cpu} ({_STATES.get(self.state, 'running')}, state {self.state}{where})"


def look_at(pids: Sequence[int], seconds: float = 0.05) -> dict[int, Look]:
    """Look at processes for a moment."""
    before = {pid: _used_ns(pid) for pid in pids}
    begin = time.monotonic_ns()
    time.sleep(seconds)
    looks = {}
    for pid in pids:
        cores = max(0, _used_ns(pid) - before[pid]) / (time.monotonic_ns() - begin)
        wchan = _read(pid, "wchan").strip("\0\n")
        looks[pid] = Look(_state(pid), "" if wchan == "0" else wchan, cores)
    return looks


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


def _state(pid: int) -> str:
    """What follows the command, which may have spaces and parentheses in it."""
    return _read(pid, "stat").rpartition(") ")[2][:1]


def _used_ns(pid: int) -> int:
    """Of all threads that live."""
    used = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                used += int((task / "schedstat").read_text().split()[0])
    return used


def catches(pid: int, signal_number: int) -> bool:
    """Whether it has a handler for the signal; else that would end it."""
    for line in _read(pid, "status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal_number - 1) & 1)
    return False
