"""Runs a part of the pytest suite on some ranks and makes one result a test out of all ranks' events.

A job ends early when a test fails while its peers wait, crashes or hangs. The tests that are
left then go into a new job, a few times over, so that one failure does not hide the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.job import Job, ending, indent, shorten, without_pytest
from runner.launch import ROOT, Launcher, clean_environment
from runner.results import StageReport

REPORTS = ROOT / "build" / "tests"
RANK = str(ROOT / "tests" / "runner" / "rank.py")
MOST_JOBS = 6


@dataclass
class PytestStage:
    name: str
    size: int
    arguments: Sequence[str]
    launcher: Launcher | None = None  # None: one process that no launcher starts
    hosts: str = ""  # pretended hosts: each rank's, with commas
    environment: Mapping[str, str] = field(default_factory=dict)
    test_timeout: float = 120
    stage_timeout: float = 1500

    def run(self, python: str) -> StageReport:
        report, began = StageReport(self.name), time.monotonic()
        finished: set[str] = set()
        left: list[str] = []
        for number in range(1, MOST_JOBS + 1):
            before = len(finished)
            left = self.run_job(python, number, finished, report)
            if not left or len(finished) == before or ending.is_set():
                break
        for test in left:
            report.add(test, "skipped", "not run: a job of its stage ended early, too often or before its first test")
        report.seconds = time.monotonic() - began
        return report

    def run_job(self, python: str, number: int, finished: set[str], report: StageReport) -> list[str]:
        """One job over the tests that are not in `finished`; adds to both; returns what is left."""
        job = self.start(python, number, finished)
        status = job.watch(self.test_timeout, self.stage_timeout)
        done, failed = self.add_results(job, report)
        finished |= done | failed
        collected = dict.fromkeys(test for rank in range(self.size) for test in job.collected(rank))
        left = [test for test in collected if test not in finished]
        culprits: list[str] = []
        if job.hang:
            culprits = [test for test in job.stuck_in if test not in failed]
            report.add(", ".join(culprits) or "(between tests)", "failed", job.hang)
        elif (status or left) and not failed:
            culprits = [self.crashed_in(job)]
            report.add(culprits[0], "failed", self.explain_crash(job, status))
        elif not collected and not failed and not done:
            report.add("(start)", "failed", f"no rank came to collect tests:\n{self.logs(job)}")
        finished |= set(culprits) & set(collected)
        return [test for test in left if test not in culprits]

    def start(self, python: str, number: int, finished: set[str]) -> Job:
        directory = REPORTS / self.name.replace(" ", "-").replace(",", "") / str(number)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "finished").write_text("\n".join(finished))
        extra = {**self.environment, "PYTHONDONTWRITEBYTECODE": ""}  # or each rank would compile each test module anew
        if self.hosts:
            extra["RINGREDUCE_TEST_HOSTS"] = self.hosts
        program = [RANK, str(directory), *self.arguments]
        if self.launcher:
            return Job(self.launcher.command(self.size, *program), self.launcher.env(extra), self.size, directory)
        return Job([python, *program], clean_environment(extra), self.size, directory)

    def add_results(self, job: Job, report: StageReport) -> tuple[set[str], set[str]]:
        """Adds each test that all ranks finished, or that failed on some; returns both sets."""
        by_test: dict[str, dict[int, dict]] = {}
        for rank in range(self.size):
            for event in job.events(rank):
                if event["event"] == "result":
                    by_test.setdefault(event["test"], {})[rank] = event
        done, failed = set(), set()
        for test, by_rank in by_test.items():
            outcomes = {rank: event["outcome"] for rank, event in by_rank.items()}
            seconds = max(event["seconds"] for event in by_rank.values())
            failing = [rank for rank, outcome in outcomes.items() if outcome == "failed"]
            if failing:
                report.add(test, "failed", self.failure_text(by_rank, failing), seconds)
                failed.add(test)
            elif len(by_rank) == self.size:
                passed = "passed" in outcomes.values()
                reason = next(iter(by_rank.values()))["text"]
                report.add(test, "passed" if passed else "skipped", "" if passed else reason, seconds)
                done.add(test)
        return done, failed

    def failure_text(self, by_rank: dict[int, dict], failing: list[int]) -> str:
        """The traceback of the rank that failed first; which others failed; who did not finish."""
        if self.size == 1:
            return str(by_rank[failing[0]]["text"])
        first = min(failing, key=lambda rank: by_rank[rank]["time"])
        others = sorted(set(failing) - {first})
        unfinished = sorted(set(range(self.size)) - set(by_rank))
        head = f"rank {first} of {self.size}"
        head += f" (failed too: {names(others)})" if others else " alone failed"
        head += f"; {names(unfinished)} did not finish it" if unfinished else ""
        return f"{head}:\n{by_rank[first]['text']}"

    def crashed_in(self, job: Job) -> str:
        """The test that a rank was in when it crashed, or that any rank was in when the job ended."""
        lasts = {rank: job.events(rank)[-1:] for rank in [*job.crashed(), *range(self.size)]}
        return next((e["test"] for last in lasts.values() for e in last if e["event"] == "start"), "(outside a test)")

    def explain_crash(self, job: Job, status: int) -> str:
        positions = "\n".join(f"rank {rank}: {job.position(rank)}" for rank in range(self.size))
        stacks = "".join(
            f"rank {rank} crashed:\n{indent(shorten(without_pytest(job.read(rank, 'stacks'))))}\n"
            for rank in job.crashed()[:1]
        )
        return f"the job ended with status {status}\n{positions}\n{stacks}{self.logs(job)}"

    def logs(self, job: Job) -> str:
        """The ends of the launcher's output and of each rank's, where there is any; equal ones once."""
        parts = {}
        logs = [("launcher", job.log.read_text(errors="replace"))]
        logs += [(f"rank {rank}", job.read(rank, "log")) for rank in range(self.size)]
        for name, text in logs:
            tail = "\n".join(text.strip().splitlines()[-30:])
            parts.setdefault(tail, name)
        return "\n".join(f"{name}'s output:\n{indent(tail)}" for tail, name in parts.items() if tail)


def names(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
