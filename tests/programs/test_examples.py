"""The examples, run as a user would."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from runner.launch import PATIENCE, ROOT, clean_environment, find_launcher

LAUNCHER = find_launcher()
SMALL = "--log-every 1 --sample-bytes 20 --batch 2 --dim 16 --layers 1 --context 16"

needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


def losses(output: str) -> dict[int, str]:
    return {int(step): loss for step, loss in re.findall(r"step +(\d+) +loss ([\d.]+)", output)}


@needs_mpirun
def test_hello():
    done = LAUNCHER.run(3, "examples/hello_allreduce.py")
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        assert f"rank {rank} of 3, local rank {rank} of 3" in done.stdout
    assert "3 ranks, whose numbers sum to 3" in done.stdout
    assert "[0, 1, 1, 2, 2, 2]" in done.stdout


@needs_mpirun
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_digits_reaches_its_accuracy(size):
    done = LAUNCHER.run(size, "examples/train_digits.py")
    assert done.returncode == 0, done.stderr
    found = re.search(r"test accuracy ([\d.]+)%", done.stdout)
    assert found, done.stdout
    assert float(found[1]) >= 95.0


def test_digits_marks_every_line_that_differs():
    """Without the marked lines no trace of ringreduce is left, and there are but a handful."""
    source = (ROOT / "examples/train_digits.py").read_text()
    code = source.split('"""', 2)[2].splitlines()
    marked = [line for line in code if "# ringreduce" in line]
    assert 5 <= len(marked) <= 12
    assert not [line for line in code if "rr." in line and line not in marked]


# Starts a program again and again in one process; what each run prints, and its status, goes into DIRECTORY/PID.
AGAIN = """
import contextlib, io, json, os, runpy, sys
directory, program, *lines = sys.argv[1:]
runs = []
for line in lines:
    sys.argv, status, out, err = [program, *line.split(" ")], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
    runs.append([status, out.getvalue(), err.getvalue()])
with open(os.path.join(directory, str(os.getpid())), "w") as file:
    json.dump(runs, file)
"""


class Run(NamedTuple):
    """Of all ranks: the largest status, and what they print."""

    status: int
    stdout: str
    stderr: str


def again(directory: Path, size: int, example: str, *lines: str) -> list[Run]:
    """Runs of an example, one with each line of arguments, in one job: a start of torch takes longer than a run."""
    directory.mkdir()
    command = ("-c", AGAIN, str(directory), f"examples/{example}", *lines)
    if size == 1:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    else:
        assert LAUNCHER is not None
        done = LAUNCHER.run(size, *command)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads(file.read_text()) for file in directory.iterdir()]
    assert len(ranks) == size
    return [
        Run(max(run[0] for run in runs), *("".join(run[i] for run in runs) for i in (1, 2)))
        for runs in zip(*ranks, strict=True)
    ]


@needs_mpirun
def test_gpt_and_its_checkpoints(tmp_path):
    """3 steps and 3 more from the checkpoint end as 6 steps do: same losses, same text.

    A checkpoint that cannot be used is told of, once.
    """
    checkpoints, damaged = tmp_path / "checkpoints", tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "checkpoint.pt").write_bytes(b"no checkpoint")
    whole, first, second, other, broken = again(
        tmp_path / "runs",
        2,
        "train_gpt.py",
        f"{SMALL} --steps 6",
        f"{SMALL} --steps 3 --checkpoint-dir {checkpoints}",
        f"{SMALL} --steps 6 --checkpoint-dir {checkpoints}",
        f"--steps 1 --checkpoint-dir {checkpoints}",
        f"{SMALL} --checkpoint-dir {damaged}",
    )
    for done in (whole, first, second):
        assert done.status == 0, done.stderr
    assert sorted(losses(whole.stdout)) == [1, 2, 3, 4, 5, 6]
    assert losses(first.stdout) | losses(second.stdout) == losses(whole.stdout)
    assert sorted(losses(second.stdout)) == [4, 5, 6]
    assert second.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint.pt"]

    assert other.status == 2
    assert "'dim': 16" in other.stderr
    assert "'dim': 64" in other.stderr
    assert broken.status != 0
    assert broken.stderr.count("is damaged, or no checkpoint of this program") == 1


def test_gpt_on_one_rank(tmp_path):
    """It refuses bad options; it learns, and writes what it has learnt."""
    refused = {
        "--heads 3": "--heads 3",
        "--batch 0": "--batch must be 1 or more, not 0",
        "--steps -1": "--steps must not be negative",
        "--temperature nan": "--temperature must be a finite number",
        "--lr 0": "--lr must be a positive number",
        "--prompt ": "--prompt must not be empty",
    }
    training = "--steps 60 --log-every 20 --temperature 0"
    *runs, trained = again(tmp_path / "runs", 1, "train_gpt.py", *refused, training)
    for message, run in zip(refused.values(), runs, strict=True):
        assert run.status == 2
        assert message in run.stderr
    assert trained.status == 0, trained.stderr
    loss = {step: float(value) for step, value in losses(trained.stdout).items()}
    assert loss[60] < loss[20]
    assert "def " in trained.stdout.splitlines()[-1] or "\ndef " in trained.stdout
