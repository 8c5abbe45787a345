"""Who holds the others up: first the verdict, then what each rank of this host does, then their Python stacks.

What ranks say of themselves is on their status pages; what those do that say nothing the kernel and faulthandler tell.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ringreduce._runtime import processes, running, stacks
from ringreduce._runtime.stacks import show_ranks

Page = dict[str, Any]  # Engine.statuses()


@dataclass
class Stall:
    """A wait that takes too long."""

    title: str
    seconds: float
    ranks: list[int]  # who has not come to it, as the core knows
    elsewhere: list[int]  # ranks of other hosts, of which not all have come
    missing: str  # the same in words


@dataclass
class Report:
    """What was seen at one moment."""

    stall: Stall
    pages: dict[int, Page]  # by rank, of this host
    looks: dict[int, processes.Look]  # likewise; none where processes cannot be seen
    texts: dict[int, str] = field(default_factory=dict)  # stacks
    pids: dict[int, int] = field(default_factory=dict)
    verdict: str = ""

    def text(self) -> str:
        """All of it, in lines."""
        lines = [f"{self.stall.title} has waited for {self.stall.seconds:.0f} s. {self.verdict}"]
        lines += [f"  {line}" for line in self.each()]
        if self.texts:
            lines.append("Python stacks, most recent call first:")
            lines += [f"  {line}" for line in stacks.show(self.texts)]
        return "\n".join(lines)

    def each(self) -> list[str]:
        """A line for each rank."""
        return [f"rank {rank}: {self.doing(rank)}" for rank in self.pages]

    def doing(self, rank: int) -> str:
        """What a rank does."""
        page, look = self.pages[rank], self.looks.get(rank)
        parts = [page["state"]] if page["state"] != "running" else []
        if page["failure"]:
            parts.append(page["failure"])
        for wait in page["waits"]:
            seconds = (time.monotonic_ns() - wait["since_ns"]) / 1e9
            at = f", at {wait['place']}" if wait["place"] else ""
            parts.append(f"waits for {wait['title']} for {seconds:.0f} s{at}")
        if look is not None and (not page["waits"] or look.stopped or look.ended):
            place = self.place(rank)
            parts.append((f"is in {place}, " if place else "") + str(look))
        parts.append(f"step {page['steps']}")
        if page["last"]:
            parts.append(f"before its last wait: {page['last']}")
        return "; ".join(parts)

    def place(self, rank: int) -> str:
        """Where its program is, as its stack says."""
        return stacks.place(self.texts[rank], self.pids[rank]) if rank in self.texts else ""


def observe(context: running.Context, stall: Stall) -> Report:
    """Look at all ranks of this host, for a second at most."""
    pages = {page["rank"]: page for page in context.engine.statuses() if page["state"] != "unknown"}
    local = [rank for rank, host in enumerate(context.host_of) if host == context.host_of[context.rank]]
    pids = dict(zip(local, context.pids, strict=False))
    seen = processes.look_at(list(pids.values()))
    looks = {rank: seen[pid] for rank, pid in pids.items()}
    answers = stacks.ask([pid for rank, pid in pids.items() if not looks[rank].stopped and not looks[rank].ended])
    texts = {rank: answers[pid] for rank, pid in pids.items() if pid in answers}
    report = Report(stall, pages, looks, texts, pids)
    report.verdict = verdict(report)
    return report


def verdict(report: Report) -> str:
    """One sentence on who is to blame, and why."""
    stall, pages, looks = report.stall, report.pages, report.looks
    absent = [rank for rank in pages if rank in looks and (looks[rank].stopped or looks[rank].ended)]
    broken = [rank for rank in pages if rank not in absent and pages[rank]["state"] != "running"]
    missing = [rank for rank in stall.ranks if rank in pages]
    busy = [rank for rank in missing if not pages[rank]["waits"]]
    # Who is outside of the set has no part in it: that a rank has shut down, or ended, says nothing then.
    stopped = [rank for rank in absent if not missing and looks[rank].stopped]
    failed = [rank for rank in broken if pages[rank]["state"] == "failed"]
    own = set(missing)
    for ranks in ([r for r in absent if r in own], [r for r in broken if r in own], busy, stopped, failed):
        if ranks:
            return "; ".join(_blame(report, rank) for rank in ranks) + _waiting(report, ranks)
    if missing:
        blocked = [rank for rank in pages if pages[rank]["waits"]]
        return f"the ranks wait for different things: {_waits(report, blocked)}"
    return stall.missing or "all ranks have submitted it, and it is being executed"


def _blame(report: Report, rank: int) -> str:
    """Why the others wait for this rank."""
    page, look, pid = report.pages[rank], report.looks.get(rank), report.pids.get(rank)
    who = f"rank {rank} ({socket.gethostname()}" + (f", pid {pid})" if pid is not None else ")")
    if look is not None and look.ended:
        return f"{who} has ended"
    if page["state"] != "running":
        why = f": {page['failure']}" if page["failure"] else ""
        return f"{who} {'has failed' if page['state'] == 'failed' else 'has shut down'}{why}"
    verb = "has not come to it" if rank in report.stall.ranks else "does not get on"
    if look is None:
        return f"{who} {verb}"
    place = report.place(rank) or (page["waits"][0]["place"] if page["waits"] else "")
    return f"{who} {verb}: it is in {place}, {look}" if place else f"{who} {verb}: {look}"


def _waits(report: Report, ranks: list[int]) -> str:
    """What ranks wait for, and where."""
    return "; ".join(
        f"{show_ranks(same)} wait{'s' if len(same) == 1 else ''} for {what}"
        for what, same in _grouped(ranks, lambda rank: _wait_of(report.pages[rank]))
    )


def _waiting(report: Report, but: list[int]) -> str:
    """All other ranks that wait."""
    others = [rank for rank in report.pages if rank not in but and report.pages[rank]["waits"]]
    return f"; {_waits(report, others)}" if others else ""


def _wait_of(page: Page) -> str:
    wait = page["waits"][0]
    return str(wait["title"]) + (f" at {wait['place']}" if wait["place"] else "")


def _grouped(ranks: list[int], what: Callable[[int], str]) -> list[tuple[str, list[int]]]:
    groups: dict[str, list[int]] = {}
    for rank in ranks:
        groups.setdefault(what(rank), []).append(rank)
    return list(groups.items())
