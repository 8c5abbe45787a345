"""How `init` goes where something is wrong with the job: an error at once, on every rank, or the end in time."""

from __future__ import annotations

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

# RANK: of this process, before init. attempt() prints what comes of a call.
PREAMBLE = """
import os, subprocess, sys, time
import torch
import ringreduce as rr

RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)

def attempt(call):
    try:
        print(f"[{RANK}] returned {call()}", flush=True)
    except Exception as error:
        print(f"[{RANK}] {type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(size, code, **environment): `code` under mpirun, to its end."""

    def start(size: int, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        assert LAUNCHER is not None
        script = tmp_path / "script.py"
        script.write_text(PREAMBLE + textwrap.dedent(code))
        return LAUNCHER.run(size, str(script), **environment)

    return start


def said(done: subprocess.CompletedProcess[str], word: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if word in line]


CHILD = """
    rr.init()
    code = "import ringreduce as rr; rr.init(); print('child is one of', rr.size())"
    OF_MPI = ("PMI", "OMPI_", "PRTE_", "HYD", "MPI_LOCAL")

    def child(command=(sys.executable, "-c", code), env=None):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
        return (done.stdout + done.stderr).strip().splitlines()[-1]
"""


def test_a_child_of_a_rank_is_not_that_rank(run):
    """It is told so, and what to do: leave the variables out (it runs alone), or start a launcher of its own."""
    assert LAUNCHER is not None
    code = f"""
    print("child:", child())
    print("without them:", child(env={{k: v for k, v in os.environ.items() if not k.startswith(OF_MPI)}}))
    rr.barrier()
    if RANK == 1:
        print("launched:", child({LAUNCHER.command(2, "-c")!r} + [code]))
    rr.barrier()
    """
    done = run(2, CHILD + code)
    assert done.returncode == 0, done.stderr
    errors = said(done, "child:")
    assert len(errors) == 2, done.stdout
    for line in errors:
        assert "RingreduceError" in line
        assert "a rank of an MPI job" in line
        assert "mpirun -np 1" in line
    assert len(said(done, "without them: child is one of 1")) == 2, done.stdout
    assert said(done, "launched: child is one of 2"), done.stdout


def test_a_child_of_a_program_without_a_launcher(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(CHILD) + "print(rr.size(), 'child:', child())")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "1 child: child is one of 1", done.stderr


def test_a_rank_that_begins_anew_is_the_same_rank(run):
    """exec keeps the process: with MPI not started yet nothing stands in the way."""
    code = """
    if "AGAIN" not in os.environ:
        os.environ["AGAIN"] = "1"
        os.execv(sys.executable, [sys.executable, __file__])
    rr.init()
    print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    """
    done = run(2, code)
    assert len(said(done, "sum 2.0")) == 2, done.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "0", "MASTER_ADDR": "localhost"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
    ],
    ids=["torchrun", "srun --mpi=none"],
)
def test_launchers_that_know_no_mpi(variables):
    done = subprocess.run(
        [sys.executable, "-c", "import ringreduce as rr; rr.init(); print('size', rr.size())"],
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert "started 4 ranks" in last
    assert "world of size 1" in last
    assert "mpirun" in last


def test_init_after_a_failed_one(run):
    code = """
    os.environ["RINGREDUCE_HOST_ID"] = "here"
    if RANK == 1:
        del os.environ["RINGREDUCE_HOST_ID"]
    attempt(rr.init)
    os.environ["RINGREDUCE_HOST_ID"] = "here"
    os.environ["RINGREDUCE_CHUNK_BYTES"] = "much" if RANK == 0 else "64K"
    attempt(rr.init)
    os.environ["RINGREDUCE_CHUNK_BYTES"] = "64K"
    attempt(lambda: rr.init(process_sets=[[0], [77]]))
    print("running", rr.is_initialized())
    attempt(lambda: rr.init(process_sets=[[0] if RANK == 0 else [1]]))
    attempt(lambda: rr.init(process_sets=[[0], [77] if RANK == 0 else [1]]))
    print("running", rr.is_initialized())
    first = rr.ProcessSet([0])
    rr.init(process_sets=[first, [1]])
    print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item(), first.process_set_id)
    """
    done = run(2, code)
    assert len(said(done, "sum 2.0 1")) == 2, done.stdout + done.stderr
    assert len(said(done, "running False")) == 4
    assert len(said(done, "HOST_ID is not set on rank(s) [1]")) == 2
    assert len(said(done, "CHUNK_BYTES is 'much'")) == 2
    assert len(said(done, "] ValueError: process_set: ranks are 0 to 1, got [77]")) == 2
    assert len(said(done, "RingreduceError: the ranks disagree about a process set")) == 4


def test_init_while_running(run):
    """It asks for what is there, or is told that it is not."""
    code = """
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
    print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    """
    done = run(2, code)
    assert len(said(done, "sum 2.0")) == 2, done.stdout + done.stderr
    assert len(said(done, "returned None")) == 6, done.stdout
    assert len(said(done, "ValueError: process_sets: ringreduce runs already, without")) == 4
    assert len(said(done, "ValueError: comm: ringreduce runs already")) == 4


def test_builds_are_compared(run):
    code = """
    from ringreduce import _version
    from ringreduce._lifecycle import bootstrap
    if RANK == 1:
        bootstrap.__version__ = "0.0.1"
    attempt(rr.init)
    bootstrap.__version__ = _version.__version__
    rr.init()
    print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
    """
    done = run(2, code)
    told = said(done, "different builds")
    assert len(told) == 2, done.stdout + done.stderr
    assert all("version 0.0.1" in line and "on rank(s) [1]" in line for line in told)
    assert len(said(done, "sum 2.0")) == 2


@pytest.mark.parametrize(
    "code",
    [
        "soon()\ntime.sleep(3600 * RANK)\nrr.init()",
        "rr.init()\nrr.barrier()\nrr.shutdown()\nsoon()\nRANK or rr.init()",
        "soon()\nattempt(lambda: rr.init([0, 1] if RANK == 0 else [0]))\ntime.sleep(3600)",
    ],
    ids=["late", "has left", "refuses"],
)
def test_a_peer_that_does_not_come(run, code):
    """Nothing can interrupt MPI: the process says why and ends."""
    soon = """
def soon():
    from ringreduce._lifecycle import bootstrap
    bootstrap._START_TIMEOUT_S = 5.0

"""
    done = run(2, soon + code, RINGREDUCE_TIMEOUT="1")
    assert done.returncode != 0, done.stdout
    assert "init() has waited for 5 s (RINGREDUCE_TIMEOUT)" in done.stderr + done.stdout
    assert "not all ranks of the job call init()" in done.stderr + done.stdout
