"""The runner's side of a test job: starts the ranks, watches them, says where they stood, ends them.

                      R.events, R.log, R.stacks, R.state
rank R (rank.py)  ------------------------------------------>  Job (here)
                  <------------------------------------------
                      SIGUSR1 (stacks), SIGUSR2 (engine), SIGKILL
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.launch import ROOT, die_with_parent
from runner.rank import EventReader

DUMP_PATIENCE = 3.0  # seconds for the ranks to write where they stand
END_PATIENCE = 10.0  # seconds for a launcher to end its ranks after SIGTERM
SHOWN_LINES = 40  # of a rank's stacks, log or engine state
ending = threading.Event()  # set when the runner is told to end: jobs that threads of it watch end too


class Job:
    """One run of pytest on `size` ranks."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], size: int, directory: Path) -> None:
        self.directory, self.size = directory, size
        self.hang = ""  # where each rank stood, once a limit was passed
        self.stuck_in: list[str] = []  # the tests that the ranks were in then
        self.readers = [EventReader(directory, rank) for rank in range(size)]
        self.mark = f"RINGREDUCE_TEST_JOB={directory}"
        name, value = self.mark.split("=", 1)
        self.log = directory / "launcher.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**env, name: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent(),  # a runner that is killed leaves no job behind
            )

    def watch(self, test_timeout: float, stage_timeout: float) -> int:
        """Waits for the end; on a hang notes where each rank stood and ends the job."""
        began = time.time()
        try:
            while self.process.poll() is None and not ending.wait(0.1):
                now = time.time()
                lasts = [events[-1] if (events := self.events(rank)) else {"time": began} for rank in range(self.size)]
                slow = any(now - last["time"] > test_timeout for last in lasts if last.get("event") != "done")
                if slow or now - began > stage_timeout:
                    limit = (
                        f"a test took more than {test_timeout:.0f} s"
                        if slow
                        else f"the stage took more than {stage_timeout:.0f} s"
                    )
                    self.stuck_in = list(dict.fromkeys(e["test"] for e in lasts if e.get("event") == "start"))
                    self.hang = f"{limit}; where each rank stood:\n{self.describe()}"
                    break
        finally:
            self.end()
        return self.process.returncode

    def events(self, rank: int) -> list[dict[str, Any]]:
        return self.readers[rank].read()

    def collected(self, rank: int) -> list[str]:
        """The tests that a rank set out to run."""
        return [test for event in self.events(rank) if event["event"] == "collected" for test in event["tests"]]

    def crashed(self) -> list[int]:
        """The ranks that left stacks unasked."""
        return [rank for rank in range(self.size) if "Fatal Python error" in self.read(rank, "stacks")]

    def pids(self) -> dict[int, int]:
        """The ranks' process ids, of those that are alive and really ours."""
        found = {}
        for rank in range(self.size):
            for event in self.events(rank)[:1]:
                with contextlib.suppress(OSError):
                    environ = Path(f"/proc/{event['pid']}/environ").read_bytes()
                    if self.mark.encode() in environ.split(b"\0"):
                        found[rank] = int(event["pid"])
        return found

    def describe(self) -> str:
        """Where each rank stands: its test, the engine's state, Python's stacks."""
        before = {rank: len(self.read(rank, "stacks")) for rank in range(self.size)}
        for number in (signal.SIGUSR2, signal.SIGUSR1):
            self.send(number)
        time.sleep(DUMP_PATIENCE)
        parts = []
        for rank in range(self.size):
            stacks = without_pytest(self.read(rank, "stacks")[before[rank] :])
            parts.append(f"rank {rank}: {self.position(rank)}")
            for title, text in (("engine", self.read(rank, "state")), ("stacks", stacks)):
                if text.strip():
                    parts.append(indent(f"{title}:\n{indent(shorten(text))}"))
        return "\n".join(parts)

    def position(self, rank: int) -> str:
        events = self.events(rank)
        if not events:
            return "had not started"
        last, seconds = events[-1], time.time() - events[-1]["time"]
        where = {
            "hello": "was starting up",
            "collected": "was before its first test",
            "start": f"was in {last.get('test')}",
            "result": f"was after {last.get('test')}",
            "done": "had finished",
        }[last["event"]]
        return f"{where}, for {seconds:.0f} s"

    def read(self, rank: int, kind: str) -> str:
        try:
            return (self.directory / f"{rank}.{kind}").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def send(self, number: int) -> None:
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Ends the launcher and every rank; a no-op for a job that has ended by itself."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(END_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.send(signal.SIGKILL)


def without_pytest(stacks: str) -> str:
    """Python stacks without the frames of pytest and of the runner, and without threads of nothing else."""
    sections = []
    for section in stacks.strip().split("\n\n"):
        lines = [line for line in section.splitlines() if not re.search(r"/(_pytest|pluggy|tests/runner)/", line)]
        frames = [line for line in lines if line.startswith("  File ") and "/threading.py" not in line]
        if frames or lines[0].startswith("Fatal"):
            sections.append("\n".join(lines))
    return "\n".join(sections)


def shorten(text: str) -> str:
    lines = text.strip().splitlines()
    if len(lines) > SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], f"... and {len(lines) - SHOWN_LINES} more lines"]
    return "\n".join(lines)


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
