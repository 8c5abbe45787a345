"""benchmarks/gpu.py on a real GPU: all of it, small."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from runner.launch import ROOT, clean_environment

from benchmarks.on_gpu import device
from ringreduce.bench import launch


@pytest.fixture(autouse=True)
def alone():
    """One rank, a GPU, and an mpirun for the command's own ranks."""
    if missing := device.find().missing:
        pytest.skip("; ".join(missing))
    if (launch.launched_size() or 1) > 1:
        pytest.skip("the command starts ranks of its own: one process is enough")
    if launch.find_mpirun() is None:
        pytest.skip("no mpirun on this machine")


def numbers(value):
    """All numbers in parsed JSON."""
    if isinstance(value, dict | list):
        return [n for one in (value.values() if isinstance(value, dict) else value) for n in numbers(one)]
    return [value] if isinstance(value, int | float) else []


def bench_gpu(tmp_path, *options):
    file = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/gpu.py", "--json", str(file), *options]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(file.read_text())
    assert all(math.isfinite(number) for number in numbers(content))
    assert content["machine"]["gpu"] in done.stdout
    assert content["machine"]["gpu_l2_bytes"] > 0
    return content["results"]


def test_kernels(tmp_path):
    rows = bench_gpu(tmp_path, "--parts", "kernels", "--size", "4M", "--repeats", "3")
    assert {row["kernel"] for row in rows} == {"pack", "unpack", "reduce", "merge_rows"}
    for row in rows:
        assert row["rate"] > 0
        assert row["copy_rate"] > 0


def test_submission(tmp_path):
    rows = bench_gpu(tmp_path, "--parts", "submission", "--np", "1", "--repeats", "5")
    assert {"plan", "tensor"} <= {row["way"] for row in rows}
    for row in rows:
        assert row["submit"]["median"] > 0


@pytest.mark.parametrize("mode", ["none", "ringreduce"])
def test_step(tmp_path, mode):
    options = ["--parts", "step", "--np", "1", "--models", "mlp", "--modes", mode, "--steps", "5", "--repeats", "1"]
    (row,) = bench_gpu(tmp_path, *options)
    assert (row["mode"], row["parameters"] // 1_000_000) == (mode, 50)
    assert row["timing"]["median"] > 0
    assert row["waits"] in (0, None), "the host waits for the GPU within a step"
