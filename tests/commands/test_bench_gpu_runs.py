"""benchmarks/gpu.py without a GPU: whole runs, on doubles of CUDA and NCCL."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from runner.doubles import build, why_not
from runner.launch import PATIENCE, ROOT, clean_environment, find_launcher

from benchmarks.on_gpu import kernels

ON_DOUBLES = Path(__file__).with_name("bench_gpu_on_doubles.py")


@pytest.fixture(scope="module")
def doubles():
    """The directory of the doubles of CUDA and NCCL."""
    if find_launcher() is None:
        pytest.skip("no mpirun on this machine")
    if reason := why_not():
        pytest.skip(reason)
    return build()[0].parent


def run_on_doubles(doubles, tmp_path, *arguments):
    """Results by part, and the output."""
    file = tmp_path / "result.json"
    command = [sys.executable, str(ON_DOUBLES), str(doubles), "--json", str(file), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    content = json.loads(file.read_text())
    assert content["benchmark"] == "gpu"
    assert content["machine"]["gpu"] in done.stdout
    return content, done.stdout


@pytest.mark.thorough  # as the next one, which is shown and written by the same code
def test_kernels_on_doubles(doubles, tmp_path):
    picture = tmp_path / "result.png"
    options = ["--parts", "kernels", "--size", "64K", "--repeats", "1"]
    if gpu_plot_is_possible():
        options += ["--plot", str(picture)]
    content, output = run_on_doubles(doubles, tmp_path, *options)
    expected = [(one.kernel, one.load, one.nbytes) for one in kernels.cases(64 << 10)]
    assert [(row["kernel"], row["load"], row["nbytes"]) for row in content["results"]] == expected
    for row in content["results"]:
        assert row["rate"] == pytest.approx(row["nbytes"] / row["timing"]["median"])
        assert row["share"] == pytest.approx(row["rate"] / row["copy_rate"])
        assert math.isfinite(row["share"])
        assert row["share"] > 0
    assert "of the copy" in output
    if gpu_plot_is_possible():
        assert picture.read_bytes().startswith(b"\x89PNG")


def gpu_plot_is_possible():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def test_submission_on_doubles(doubles, tmp_path):
    content, _ = run_on_doubles(doubles, tmp_path, "--parts", "submission", "--np", "2", "--repeats", "2")
    rows = content["results"]
    ways = ["plan", "tensor", "nccl", "torch"]
    assert [(row["way"], row["nbytes"]) for row in rows] == [(way, n) for n in (4 << 10, 25 << 20) for way in ways]
    assert {row["ranks"] for row in rows} == {2} == {content["ranks"]}
    for row in rows:
        assert 0 < row["submit"]["low"] <= row["submit"]["median"] <= row["submit"]["high"] < math.inf
        assert row["target"] == (10e-6 if row["way"] == "plan" else None)


@pytest.mark.thorough  # the loop is that of `ringreduce bench step`
def test_step_on_doubles(doubles, tmp_path):
    options = ["--parts", "step", "--np", "1", "--models", "mlp", "--modes", "none,ringreduce", "--steps", "5"]
    content, output = run_on_doubles(doubles, tmp_path, *options, "--repeats", "1")
    rows = content["results"]
    assert [(row["model"], row["mode"], row["ranks"]) for row in rows] == [("mlp", "none", 1), ("mlp", "ringreduce", 1)]
    for row in rows:
        assert 0 < row["timing"]["median"] < math.inf
        assert len(row["jobs"]) == 1
        assert row["waits"] is None
    assert "training step" in output
