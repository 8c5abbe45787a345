"""One rank's side of a test job: runs pytest and tells the runner, line by line, where it stands.

    mpirun -np 4 python tests/runner/rank.py DIRECTORY [pytest arguments]

Rank R leaves in DIRECTORY:
    R.events   one JSON object a line: hello, collected, start, result, done (see Events)
    R.log      what the rank printed, pytest's own report included
    R.stacks   Python stacks, written on SIGUSR1 or when the process crashes
    R.state    what the engine is waiting for, written on SIGUSR2
Tests named in DIRECTORY/finished have been run by an earlier job and are left out.

A rank that fails a test looks whether its peers come to the end of the same test. If they do,
the job goes on; if they don't, they wait for what this rank will not send, and it ends the job.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

GRACE = 5.0  # seconds that the peers of a rank that failed have to finish the same test


def launcher_rank() -> int:
    """This process's rank as its launcher says (0 without one), known before MPI is started."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def launcher_size() -> int:
    """The number of ranks as the launcher says, 1 without one."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


class EventReader:
    """Reads the events of a rank as they are written."""

    def __init__(self, directory: Path, rank: int) -> None:
        self.path, self.at, self.events = directory / f"{rank}.events", 0, list[dict[str, Any]]()

    def read(self) -> list[dict[str, Any]]:
        """All events that are written completely so far."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.at)
                new = file.read()
            end = new.rfind(b"\n") + 1
            self.events += map(json.loads, new[:end].splitlines())
            self.at += end
        return self.events


class Reporter:
    """The pytest plugin that writes the events."""

    def __init__(self, directory: Path, rank: int, size: int) -> None:
        self.directory, self.rank, self.size = directory, rank, size
        self.file = (directory / f"{rank}.events").open("a")
        finished = directory / "finished"
        self.finished = set(finished.read_text().splitlines()) if finished.exists() else set()
        self.outcome, self.text, self.began, self.cpu = "passed", "", 0.0, 0.0

    def event(self, kind: str, **fields: Any) -> None:
        self.file.write(json.dumps({"event": kind, "time": time.time(), **fields}) + "\n")
        self.file.flush()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.finished]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.event("collected", tests=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            text = skip_reason(report) if report.skipped else report.longreprtext
            self.event("start", test=report.nodeid)
            self.event("result", test=report.nodeid, outcome=report.outcome, text=text, seconds=0.0)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome, self.text, self.began, self.cpu = "passed", "", time.monotonic(), cpu_seconds()
        self.event("start", test=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            captured = "".join(f"\n--- {title} ---\n{text}" for title, text in report.sections if text.strip())
            self.outcome, self.text = "failed", self.text + report.longreprtext + captured
        elif report.skipped and self.outcome == "passed":
            self.outcome, self.text = "skipped", skip_reason(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds = time.monotonic() - self.began
        cpu = cpu_seconds() - self.cpu
        self.event("result", test=nodeid, outcome=self.outcome, text=self.text, seconds=seconds, cpu=cpu)
        if self.outcome == "failed" and not self.peers_finish(nodeid):
            end_job()

    def pytest_sessionfinish(self) -> None:
        self.event("done")

    def peers_finish(self, nodeid: str) -> bool:
        """Whether all ranks come to the end of the test within the grace period."""
        peers = [EventReader(self.directory, peer) for peer in range(self.size) if peer != self.rank]
        deadline = time.monotonic() + GRACE
        while peers and time.monotonic() < deadline:
            peers = [peer for peer in peers if not has_result(peer.read(), nodeid)]
            time.sleep(0.05)
        return not peers


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


def has_result(events: list[dict[str, Any]], nodeid: str) -> bool:
    return any(event["event"] == "result" and event["test"] == nodeid for event in events)


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"expected to fail: {report.wasxfail}"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def end_job() -> None:
    """Ends all ranks of the job; its launcher sees to that once this one aborts."""
    sys.stdout.flush()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.COMM_WORLD.Abort(1)
    os._exit(1)


def describe_on_signal(path: Path) -> None:
    """Writes the engine's state to `path` on SIGUSR2, also while the main thread waits in C.

    Python runs signal handlers in the main thread only; but the signal's number arrives in the
    wakeup pipe at once, where a thread waits for it.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def serve() -> None:
        while os.read(receiver, 1):
            text = "ringreduce is not loaded"
            if "ringreduce" in sys.modules:
                try:
                    text = importlib.import_module("ringreduce._runtime.hang_report").describe()
                except Exception as error:  # a report without it is better than none
                    text = f"no description: {error!r}"
            path.write_text(f"{text}\n")

    threading.Thread(target=serve, name="describe", daemon=True).start()


def main() -> int:
    directory, arguments = Path(sys.argv[1]), sys.argv[2:]
    rank, size = launcher_rank(), launcher_size()
    log = (directory / f"{rank}.log").open("a")
    sys.stdout.flush()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)

    stacks = (directory / f"{rank}.stacks").open("a")
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    describe_on_signal(directory / f"{rank}.state")

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what else is installed costs every rank seconds
    reporter = Reporter(directory, rank, size)
    reporter.event("hello", pid=os.getpid(), size=size)
    status = pytest.main(["-q", "-p", "no:faulthandler", *arguments], plugins=[reporter])
    # Failed tests are in the events; a status is for what pytest itself could not do.
    return (
        0
        if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        else int(status)
    )


if __name__ == "__main__":
    sys.exit(main())
