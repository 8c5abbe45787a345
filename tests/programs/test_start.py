"""How `init` goes where something is wrong with the job: an error at once, on every rank, or the end in time."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from runner.launch import PATIENCE, clean_environment, find_launcher

LAUNCHER = find_launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# RANK: of this process, before init. attempt() says what comes of a call.
PREAMBLE = """
import os, subprocess, sys, time
import torch
import ringreduce as rr

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)

part = "all"

def say(*words):
    print(f"rank {RANK} in {part}:", *words, flush=True)

def attempt(call):
    try:
        say("returned", call())
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(size, code, before="", **environment): `code` under mpirun, to its end; `before` comes before any import."""

    def start(size: int, code: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        assert LAUNCHER is not None
        script = tmp_path / "script.py"
        script.write_text(before + PREAMBLE + textwrap.dedent(code))
        return LAUNCHER.run(size, str(script), **environment)

    return start


def said(done: subprocess.CompletedProcess[str], word: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if word in line]


# What a process that a rank starts says last.
CHILD = """
    code = "import ringreduce as rr; rr.init(); print('child is one of', rr.size())"
    OF_MPI = ("PMI", "OMPI_", "PRTE_", "HYD", "MPI_LOCAL")

    def child(command=(sys.executable, "-c", code), env=None):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
        return (done.stdout + done.stderr).strip().splitlines()[-1]
"""

# exec keeps the process: with MPI not started yet nothing stands in the way.
AGAIN = """
import os, sys
if "AGAIN" not in os.environ:
    os.environ["AGAIN"] = "1"
    os.execv(sys.executable, [sys.executable, __file__])
"""


def test_a_child_of_a_rank_is_not_that_rank(run):
    """It is told so, and what to do: leave the variables out (it runs alone), or start a launcher of its own.

    A rank that begins anew, on the other hand, is the same rank.
    """
    assert LAUNCHER is not None
    code = f"""
    rr.init()
    print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    if RANK == 0:
        print("child:", child())
        print("without them:", child(env={{k: v for k, v in os.environ.items() if not k.startswith(OF_MPI)}}))
    else:
        print("launched:", child({LAUNCHER.command(2, "-c")!r} + [code]))
    rr.barrier()
    """
    done = run(2, CHILD + code, before=AGAIN)
    assert done.returncode == 0, done.stderr
    assert len(said(done, "sum 2.0")) == 2, done.stdout
    (line,) = said(done, "child:")
    assert "RingreduceError" in line
    assert "a rank of an MPI job" in line
    assert "mpirun -np 1" in line
    assert said(done, "without them: child is one of 1"), done.stdout
    assert said(done, "launched: child is one of 2"), done.stdout


def test_a_child_of_a_program_without_a_launcher(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(CHILD) + "rr.init()\nprint(rr.size(), 'child:', child())")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "1 child: child is one of 1", done.stderr


# One job, in which the library begins again and again; each part ends with it shut down.
LIVES = {
    "init after a failed one": """
        os.environ["RINGREDUCE_HOST_ID"] = "here"
        if RANK == 1:
            del os.environ["RINGREDUCE_HOST_ID"]
        attempt(rr.init)
        os.environ["RINGREDUCE_HOST_ID"] = "here"
        os.environ["RINGREDUCE_CHUNK_BYTES"] = "much" if RANK == 0 else "64K"
        attempt(rr.init)
        os.environ["RINGREDUCE_CHUNK_BYTES"] = "64K"
        attempt(lambda: rr.init(process_sets=[[0], [77]]))
        say("running", rr.is_initialized())
        attempt(lambda: rr.init(process_sets=[[0] if RANK == 0 else [1]]))
        attempt(lambda: rr.init(process_sets=[[0], [77] if RANK == 0 else [1]]))
        say("running", rr.is_initialized())
        first = rr.ProcessSet([0])
        rr.init(process_sets=[first, [1]])
        say("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item(), first.process_set_id)
    """,
    "init while running": """
        from mpi4py import MPI
        here = rr.ProcessSet([0])
        rr.init(process_sets=[here])
        attempt(lambda: rr.init(process_sets=[here, [0], [0, 1]]))
        attempt(lambda: rr.init(MPI.COMM_WORLD, [here]))
        attempt(lambda: rr.init([0, 1]))
        attempt(lambda: rr.init(process_sets=[[1]]))
        attempt(lambda: rr.init(process_sets=[rr.ProcessSet([0])]))
        attempt(lambda: rr.init([RANK]))
        attempt(lambda: rr.init(MPI.COMM_SELF))
        say("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    """,
    "builds are compared": """
        from ringreduce import _version
        from ringreduce._lifecycle import bootstrap
        if RANK == 1:
            bootstrap.__version__ = "0.0.1"
        attempt(rr.init)
        bootstrap.__version__ = _version.__version__
        rr.init()
        say("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    """,
}


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    """lives(part, word): what the ranks said in a part, the lines with this word."""
    script = tmp_path_factory.mktemp("lives") / "script.py"
    parts = (f"part = {name!r}\n{textwrap.dedent(code)}rr.shutdown()\n" for name, code in LIVES.items())
    script.write_text(PREAMBLE + "".join(parts))
    assert LAUNCHER is not None
    done = LAUNCHER.run(2, str(script))
    assert done.returncode == 0, done.stdout + done.stderr
    return lambda part, word: [line for line in said(done, word) if f"in {part}:" in line]


def test_init_after_a_failed_one(lives):
    part = "init after a failed one"
    assert len(lives(part, "sum 2.0 1")) == 2
    assert len(lives(part, "running False")) == 4
    assert len(lives(part, "HOST_ID is not set on rank(s) [1]")) == 2
    assert len(lives(part, "CHUNK_BYTES is 'much'")) == 2
    assert len(lives(part, f"{part}: ValueError: process_set: ranks are 0 to 1, got [77]")) == 2
    assert len(lives(part, "RingreduceError: the ranks disagree about a process set")) == 4


def test_init_while_running(lives):
    """It asks for what is there, or is told that it is not."""
    part = "init while running"
    assert len(lives(part, "sum 2.0")) == 2
    assert len(lives(part, "returned None")) == 6
    assert len(lives(part, "ValueError: process_sets: ringreduce runs already, without")) == 4
    assert len(lives(part, "ValueError: comm: ringreduce runs already")) == 4


def test_builds_are_compared(lives):
    part = "builds are compared"
    told = lives(part, "different builds")
    assert len(told) == 2
    assert all("version 0.0.1" in line and "on rank(s) [1]" in line for line in told)
    assert len(lives(part, "sum 2.0")) == 2


@pytest.mark.parametrize(
    "code",
    [
        "soon()\ntime.sleep(3600 * RANK)\nrr.init()",
        pytest.param("rr.init()\nrr.barrier()\nrr.shutdown()\nsoon()\nRANK or rr.init()", marks=pytest.mark.thorough),
        "soon()\nattempt(lambda: rr.init([0, 1] if RANK == 0 else [0]))\ntime.sleep(3600)",
    ],
    ids=["late", "has left", "refuses"],
)
def test_a_peer_that_does_not_come(run, code):
    """Nothing can interrupt MPI: the process says why and ends."""
    soon = """
def soon():
    from ringreduce._lifecycle import bootstrap
    bootstrap._START_TIMEOUT_S = 2.0

"""
    done = run(2, soon + code, RINGREDUCE_TIMEOUT="1")
    assert done.returncode != 0, done.stdout
    assert "init() has waited for 2 s (RINGREDUCE_TIMEOUT)" in done.stderr + done.stdout
    assert "not all ranks of the job call init()" in done.stderr + done.stdout


def test_who_has_not_come_is_named(run):
    """Before the end, and as a warning; on one rank, though two wait."""
    soon = "from ringreduce._lifecycle import bootstrap\nbootstrap._START_TIMEOUT_S = 8.0\n"
    come = "time.sleep(3600 * (RANK == 1))\nrr.init()"
    done = run(3, soon + come, RINGREDUCE_TIMEOUT="1", RINGREDUCE_STALL_WARNING="4")
    text = done.stderr + done.stdout
    warnings = re.findall(r"ringreduce: init\(\) has waited for 4 s on \S+: (.*)", text)
    assert 1 <= len(warnings) <= 2, text  # the first rank may come later than the other's warning
    for warning in [*warnings, *re.findall(r"ringreduce: init\(\) has waited for 8 s on \S+: (.*)", text)]:
        assert re.match(
            r"(rank [02] \(pid \d+\) has not called init\(\): .*; )?rank 1 \(pid \d+\) has not called init\(\): ",
            warning,
        )
