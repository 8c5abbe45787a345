"""The ranks of this user on this host, by the memfd that each has (`_runtime.stacks`), and their status pages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ringreduce import _core
from ringreduce._runtime import processes, stacks
from ringreduce._runtime.stall_report import Report, Stall
from ringreduce.errors import RingreduceError


@dataclass
class Job:
    """The ranks of one job that run here."""

    size: int
    local_size: int
    pids: dict[int, int] = field(default_factory=dict)  # by rank
    segment: _core.Segment | None = None  # of its world; None where it cannot be opened

    def pages(self) -> dict[int, dict[str, Any]]:
        """By rank, of those that are here; what is not known of them is left open."""
        known = _core.statuses(self.segment, self.local_size) if self.segment is not None else []
        by_rank = {page["rank"]: page for page in known if page["state"] != "unknown"}
        nothing = {"state": "running", "failure": "", "waits": [], "steps": 0, "last": ""}
        return {rank: by_rank.get(rank, nothing) for rank in sorted(self.pids)}

    def look(self, with_stacks: bool, seconds: float = 0.05) -> Report:
        """What its ranks do now."""
        pids = self.pids
        seen = processes.look_at(list(pids.values()), seconds)
        looks = {rank: seen[pid] for rank, pid in pids.items()}
        answers = stacks.ask([pid for rank, pid in pids.items() if not looks[rank].stopped]) if with_stacks else {}
        texts = {rank: answers[pid] for rank, pid in pids.items() if pid in answers}
        return Report(Stall("", 0, [], [], ""), self.pages(), looks, texts, pids)


def find(only: int | None = None) -> list[Job]:
    """All jobs, or that of one process with nothing but this process in it."""
    jobs: dict[tuple[Any, ...], Job] = {}
    for pid in [only] if only is not None else _own_processes():
        mark = stacks.mark_of(pid)
        if mark is None:
            continue
        with contextlib.suppress(KeyError, TypeError):  # another build's
            offer = tuple(mark["segment"])
            if offer not in jobs:
                jobs[offer] = Job(mark["size"], mark["local_size"], segment=_open(offer, mark["nbytes"]))
            jobs[offer].pids[mark["rank"]] = pid
    return list(jobs.values())


def _open(offer: Any, nbytes: int) -> _core.Segment | None:
    with contextlib.suppress(RingreduceError, OSError, ValueError):
        return _core.Segment.open(offer, nbytes)
    return None


def _own_processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if os.stat(f"/proc/{int(name)}").st_uid == os.getuid():
                yield int(name)
