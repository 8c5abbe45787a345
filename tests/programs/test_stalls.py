"""A rank that does not come: the report of the others names it, says where it is, and shows all stacks."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runner.launch import PATIENCE, ROOT, find_launcher

LAUNCHER = find_launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")

# Rank 1 is held up by one thing after the other, until the test lets it go.
PROGRAM = """
    import ctypes, os, signal, sys, threading
    import torch
    import ringreduce as rr

    os.chdir(os.environ["FOLDER"])
    rr.init()
    with open(f"{rr.rank()}.pid", "w") as file:
        file.write(str(os.getpid()))
    model = torch.nn.Linear(4, 4)
    rr.broadcast_parameters(model.state_dict(), 0)
    optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())

    def train(batch):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()

    def reads(name):
        return open(name).read()

    def holds_the_gil(name):
        file = os.open(name, os.O_RDWR)
        ctypes.PyDLL(None).read(file, ctypes.create_string_buffer(1), 1)

    def stops(name):
        os.kill(os.getpid(), signal.SIGSTOP)

    def late(call):
        threading.Thread(target=lambda: (reads("skips"), call())).start()

    train(torch.ones(2, 4))
    for held in (reads, holds_the_gil, stops):
        rr.barrier()
        if rr.rank() == 1:
            held(held.__name__)
        train(torch.ones(2, 4))
    one = torch.ones(1)
    rr.barrier()
    if rr.rank() == 1:
        late(lambda: rr.allreduce(one, name="g50"))
    else:
        rr.allreduce(one, name="g50")
    rr.allreduce(one, name="g51")
    rr.barrier()
    print("over", flush=True)
"""

BUCKET = r"gradient bucket 0 \(bias and 1 more\)"
HELD = rf"{BUCKET} has waited for \d+ s\. rank 1 \(\S+, pid \d+\) has not come to it: "
WAITING = rf"; ranks 0, 2 wait for {BUCKET} at train\.py:\d+ train$"
EXPECTED = {
    "reads": HELD
    + r"it is in train\.py:\d+, in reads: return open\(name\)\.read\(\), using no CPU \(.*state S.*\)"
    + WAITING,
    "holds_the_gil": HELD
    + r"it is in train\.py:\d+, in holds_the_gil: ctypes.*, using no CPU \(.*state S.*\)"
    + WAITING,
    "stops": HELD + r"it is stopped by a signal \(state T\)" + WAITING,
    "skips": r"the ranks wait for different things: ranks 0, 2 wait for allreduce 'g50' at train\.py:\d+ <module>; "
    r"rank 1 waits for allreduce 'g51' at train\.py:\d+ <module>$",
}


class Job:
    """The program under way; what it prints."""

    def __init__(self, folder: Path, program: str, warning: float, **extra: str) -> None:
        assert LAUNCHER is not None
        self.folder, self.lines = folder, list[str]()
        (folder / "train.py").write_text(textwrap.dedent(program))
        self.process = subprocess.Popen(
            LAUNCHER.command(3, str(folder / "train.py")),
            env=LAUNCHER.env({"FOLDER": str(folder), "RINGREDUCE_STALL_WARNING": str(warning), **extra}),
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines += (line for line in self.process.stdout)

    def pid(self, rank: int) -> int:
        return int((self.folder / f"{rank}.pid").read_text())

    def sees(self, pattern: str, seconds: float) -> bool:
        """Whether a line comes."""

        def seen() -> bool:
            return any(re.search(pattern, line) for line in list(self.lines))

        within(seconds, lambda: seen() or self.process.poll() is not None)
        return seen()


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


@contextlib.contextmanager
def job(folder: Path, program: str, warning: float, **extra: str) -> Iterator[Job]:
    running = Job(folder, program, warning, **extra)
    try:
        yield running
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.kill(running.pid(1), signal.SIGCONT)
        running.process.kill()
        running.process.wait()


def let_go(running: Job, name: str) -> None:
    if name == "stops":
        os.kill(running.pid(1), signal.SIGCONT)
    else:
        (running.folder / name).write_text("go")


def command(*arguments: str) -> str:
    assert LAUNCHER is not None
    return subprocess.run(
        [LAUNCHER.python, "-m", "ringreduce", *arguments],
        env=LAUNCHER.env(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def look_from_outside(running: Job) -> None:
    """`ringreduce top` and `ringreduce stacks`, while rank 1 reads."""
    rows = {line.split()[1]: line for line in command("top", "--once").splitlines()[1:] if len(line.split()) > 2}
    assert re.search(rf"^ *0 +\d+ +1 +\d+% +waits +{BUCKET} +[\d.]+ s +train\.py:\d+ train", rows[str(running.pid(0))])
    assert re.search(r"^ *1 +\d+ +1 +\d+% +sleeps in ", rows[str(running.pid(1))])
    told = command("stacks", str(running.pid(1)))
    assert "rank 1: is in train.py" in told
    assert re.search(r'File ".*/train\.py", line \d+ in reads\n', told)


def drill(folder: Path, warning: float) -> str:
    """What was not said in time; "" if all was, and the job has come to its end."""
    for name in EXPECTED:
        if name != "stops":
            os.mkfifo(folder / name)
    with job(folder, PROGRAM, warning) as running:
        for at, (name, pattern) in enumerate(EXPECTED.items()):
            if not running.sees(pattern, 60 * warning if at else PATIENCE):
                return f"{name} is not explained:\n{''.join(running.lines)}"
            if name == "reads":
                look_from_outside(running)
            let_go(running, name)
        assert running.process.wait(PATIENCE) == 0, "".join(running.lines)
        text = "".join(running.lines)
    # Also of the rank that holds the GIL; and those that wait alike are together.
    assert re.search(r'^  rank 1:\n    File ".*/train\.py", line \d+ in holds_the_gil\n', text, re.MULTILINE), text
    assert re.search(r"^  ranks 0, 2:\n", text, re.MULTILINE), text
    return ""


def test_a_rank_that_does_not_come_is_named_and_found(tmp_path):
    problem = ""
    for warning in (1.0, 15.0):  # a busy machine may make others late, too
        (folder := tmp_path / str(warning)).mkdir()
        problem = drill(folder, warning)
        if not problem:
            return
    pytest.fail(problem)


TIMES_OUT = """
    import os, time
    import torch
    import ringreduce as rr

    os.chdir(os.environ["FOLDER"])
    rr.init()
    rr.barrier()
    if rr.rank() != 1:
        try:
            rr.allreduce(torch.ones(1), name="loss")
        except rr.RingreduceTimeoutError as error:
            with open(f"{rr.rank()}.tmp", "w") as file:
                file.write(str(error))
            os.rename(file.name, f"{rr.rank()}.error")
    while not (os.path.exists("0.error") and os.path.exists("2.error")):
        time.sleep(0.05)
    rr.allreduce(torch.ones(1), name="loss") if rr.rank() == 1 else None
    rr.barrier()
"""


def test_all_time_outs_have_the_same_verdict(tmp_path):
    with job(tmp_path, TIMES_OUT, 1000, RINGREDUCE_TIMEOUT="10") as running:
        assert running.process.wait(PATIENCE) == 0, "".join(running.lines)
        text = "".join(running.lines)
    errors = [(tmp_path / f"{rank}.error").read_text() for rank in (0, 2)]
    for error in errors:
        assert re.match(r"allreduce 'loss' has not completed in 10(\.\d+)? s: rank 1 has not submitted it\n", error)
    verdicts = {error.partition("\n")[2] for error in errors}
    assert len(verdicts) == 1, verdicts
    assert re.match(
        r"rank 1 \(\S+, pid \d+\) has not come to it: it is in train\.py:\d+, in <module>: ", verdicts.pop()
    )
    assert text.count("Python stacks") == 1, text


OFF = """
    import os, signal
    import torch
    import ringreduce as rr
    from ringreduce._runtime import processes, stacks

    os.chdir(os.environ["FOLDER"])
    before = signal.getsignal(45)
    rr.init()
    found = stacks.find(os.getpid())
    assert found is not None and found[1] == 0, found
    assert not processes.catches(os.getpid(), 45)
    assert stacks.ask([os.getpid()]) == {}
    if rr.rank() == 1:
        open("fifo").read()
    rr.barrier()
"""


def test_without_a_signal_reports_have_no_stacks(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with job(tmp_path, OFF, 1, RINGREDUCE_STACK_SIGNAL="0") as running:
        assert running.sees(r"rank 1 \(\S+, pid \d+\) has not come to it: using no CPU", PATIENCE), "".join(
            running.lines
        )
        let_go(running, "fifo")
        assert running.process.wait(PATIENCE) == 0, "".join(running.lines)
    assert "Python stacks" not in "".join(running.lines)
