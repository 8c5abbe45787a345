"""The examples, run as a user would."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from runner.launch import PATIENCE, ROOT, clean_environment, find_launcher

LAUNCHER = find_launcher()
SMALL = ("--log-every", "1", "--sample-bytes", "20", "--batch", "2", "--dim", "16", "--layers", "1", "--context", "16")

needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


def run(size: int, example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an example on `size` ranks; without mpirun where one is enough."""
    if size == 1:
        return subprocess.run(
            [sys.executable, f"examples/{example}", *arguments],
            cwd=ROOT,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert LAUNCHER is not None
    return LAUNCHER.run(size, f"examples/{example}", *arguments)


def losses(output: str) -> dict[int, str]:
    return {int(step): loss for step, loss in re.findall(r"step +(\d+) +loss ([\d.]+)", output)}


@needs_mpirun
def test_hello():
    done = run(3, "hello_allreduce.py")
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        assert f"rank {rank} of 3, local rank {rank} of 3" in done.stdout
    assert "3 ranks, whose numbers sum to 3" in done.stdout
    assert "[0, 1, 1, 2, 2, 2]" in done.stdout


@needs_mpirun
def test_digits_reaches_its_accuracy():
    done = run(4, "train_digits.py")
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


@needs_mpirun
def test_gpt_resumes_exactly(tmp_path):
    """3 steps and 3 more from the checkpoint end as 6 steps do: same losses, same text."""
    whole = run(2, "train_gpt.py", *SMALL, "--steps", "6")
    first = run(2, "train_gpt.py", *SMALL, "--steps", "3", "--checkpoint-dir", str(tmp_path))
    second = run(2, "train_gpt.py", *SMALL, "--steps", "6", "--checkpoint-dir", str(tmp_path))
    for done in (whole, first, second):
        assert done.returncode == 0, done.stderr
    assert losses(first.stdout) | losses(second.stdout) == losses(whole.stdout)
    assert sorted(losses(second.stdout)) == [4, 5, 6]
    assert second.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_gpt_learns_and_samples():
    done = run(1, "train_gpt.py", "--steps", "60", "--log-every", "20", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    loss = {step: float(value) for step, value in losses(done.stdout).items()}
    assert loss[60] < loss[20]
    assert "def " in done.stdout.splitlines()[-1] or "\ndef " in done.stdout


def test_gpt_refuses_bad_options():
    """One process, in which the program starts again and again."""
    refused = {
        "--heads 3": "--heads 3",
        "--batch 0": "--batch must be 1 or more, not 0",
        "--steps -1": "--steps must not be negative",
        "--temperature nan": "--temperature must be a finite number",
        "--lr 0": "--lr must be a positive number",
        "--prompt ": "--prompt must not be empty",
    }
    again = (
        f"import runpy, sys\nfor arguments in {[*refused]}:\n"
        "    sys.argv = ['train_gpt.py', *arguments.split(' ')]\n"
        "    try:\n"
        "        runpy.run_path('examples/train_gpt.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        print(arguments, 'ends with', end.code, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", again],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for arguments, message in refused.items():
        said, _, rest = done.stderr.partition(f"{arguments} ends with 2\n")
        assert message in said.split(" ends with 2\n")[-1], done.stderr
        assert rest != done.stderr


@needs_mpirun
def test_gpt_tells_a_damaged_checkpoint_once(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    done = run(2, "train_gpt.py", *SMALL, "--checkpoint-dir", str(tmp_path))
    assert done.returncode != 0
    assert done.stderr.count("is damaged, or no checkpoint of this program") == 1
    assert "Traceback" not in done.stderr


def test_gpt_tells_a_checkpoint_of_another_model(tmp_path):
    assert run(1, "train_gpt.py", *SMALL, "--steps", "1", "--checkpoint-dir", str(tmp_path)).returncode == 0
    done = run(1, "train_gpt.py", "--steps", "1", "--checkpoint-dir", str(tmp_path))
    assert done.returncode == 2
    assert "'dim': 16" in done.stderr
    assert "'dim': 64" in done.stderr
