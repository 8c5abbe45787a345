"""tests/gpu/streams_under_load.py without a GPU: on the doubles it finds nothing wrong, and it can find something."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from runner.doubles import build, why_not
from runner.launch import ROOT, find_launcher

sys.path.insert(0, str(ROOT / "tests" / "gpu"))
import streams_under_load as program

LAUNCHER = find_launcher()
pytestmark = pytest.mark.skipif(LAUNCHER is None or bool(why_not()), reason=why_not() or "no mpirun on this machine")


def run(size, **environment):
    cuda, nccl = build()
    doubles = {"RINGREDUCE_CUDA_LIBRARY": str(cuda), "RINGREDUCE_NCCL": str(nccl), "RR_DOUBLE_DELAY_US": "300"}
    options = ("--on-doubles", "--rounds", "8", "--count", "3001")
    return LAUNCHER.run(size, program.__file__, *options, **doubles, **environment)


@pytest.mark.parametrize(
    ("size", "path"),
    [
        pytest.param(1, "nccl", marks=pytest.mark.thorough),
        (2, "nccl"),
        pytest.param(2, "host", marks=pytest.mark.thorough),
    ],
)
def test_nothing_is_wrong_on_the_doubles(size, path):
    done = run(size, RINGREDUCE_GPU_PATH="host" if path == "host" else "")
    assert done.returncode == 0, done.stdout + done.stderr
    tensors = re.findall(rf"rank \d of {size}, {path}: (\d+) tensors, 0 elements wrong", done.stdout)
    assert len(tensors) == size
    assert all(int(count) > 8 * program.STREAMS for count in tensors)


@pytest.mark.thorough
def test_a_collective_that_fails_is_no_success():
    done = run(2, RR_DOUBLE_FAIL="nccl_collective:2:9")
    assert done.returncode != 0
    assert "RingreduceError" in done.stderr


def test_wrong_elements_are_counted():
    comparison = program.Comparison(SimpleNamespace(device="cpu"))
    comparison.compare(0, torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([1.0, 3.0, 4.0]))
    comparison.compare(3, torch.tensor([7]), torch.tensor([7]))
    assert (comparison.tensors, comparison.wrong()) == (2, 2)
    with pytest.raises(AssertionError):
        comparison.compare(0, torch.zeros(2), torch.zeros(3))
