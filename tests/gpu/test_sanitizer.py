"""streams_under_load.py: as it is, and under compute-sanitizer. One process is enough: it starts ranks of its own.

initcheck, racecheck and synccheck look at ringreduce's own kernels only: some of torch's read what
nobody wrote and make no use of it. racecheck and synccheck watch shared memory and barriers, which no
kernel of ringreduce's has so far.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from runner.launch import ROOT, clean_environment, find_launcher

from ringreduce.bench.launch import launched_size

PROGRAM = str(Path(__file__).with_name("streams_under_load.py"))
SMALL = ("--rounds", "8", "--count", "20011", "--side", "256")  # the tools make kernels many times slower
SECONDS = 220  # below the runner's limit for a test of this stage
OURS = ("--kernel-name", "kns=ringreduce")
SHARING = {"NCCL_MULTI_RANK_GPU_ENABLE": "1"}  # two ranks may have one GPU between them
# Not the errors of CUDA's calls, which the core sees by itself: torch and NCCL make some that may fail.
MEMCHECK = ("--tool", "memcheck", "--report-api-errors", "no", "--kernel-name-exclude", "kns=nccl")


class Tool(NamedTuple):
    options: Sequence[str]
    environment: dict[str, str]
    oldest: tuple[int, ...] = (2023, 3)  # the first that knows the options


TOOLS = {
    # Each tensor has an allocation of its own, so that its ends are known.
    "memcheck": Tool(MEMCHECK, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
    # torch's memory, as ringreduce's, is allocated and freed on a stream: a use by another stream that
    # is not ordered between the two is reported. Versions before reported some that are.
    "order": Tool(
        (*MEMCHECK, "--track-stream-ordered-races", "all"),
        {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        (2025, 4, 1),
    ),
    # Versions before took what other kernels had written for unwritten.
    "initcheck": Tool(
        ("--tool", "initcheck", "--check-api-memory-access", "no", *OURS),
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        (2026, 4),
    ),
    "racecheck": Tool(("--tool", "racecheck", *OURS), {}),
    "synccheck": Tool(("--tool", "synccheck", *OURS), {}),
}


@pytest.fixture(autouse=True)
def one_process() -> None:
    if (launched_size() or 1) > 1:
        pytest.skip("the program has ranks of its own: one process is enough")


def run(size: int, options: Sequence[str] = (), wrapper: Sequence[str] = (), **environment: str) -> str:
    """The program's output, on `size` ranks of one GPU; each rank is run by `wrapper`, if there is one."""
    command = [*wrapper, sys.executable, PROGRAM, *options]
    if size > 1:
        launcher = find_launcher()
        if launcher is None:
            pytest.skip("there is no mpirun")
        command = replace(launcher, options=[*launcher.options, *wrapper]).command(size, PROGRAM, *options)
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment({**SHARING, **environment}), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"[1-9]\d* tensors, 0 elements wrong", done.stdout)) == size, done.stdout
    return done.stdout


def find_sanitizer() -> str | None:
    """compute-sanitizer: PyPI's, which is the newest, else the one on PATH, else a CUDA toolkit's."""
    packages = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin"), reverse=True)
    toolkits = sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    places = [*packages, *os.environ.get("PATH", "").split(":"), *toolkits]
    return shutil.which("compute-sanitizer", path=":".join(map(str, places)))


def version_of(sanitizer: str) -> tuple[int, ...]:
    done = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r"Version (\d+(?:\.\d+)*)", done.stdout)
    assert found, done.stdout
    return tuple(map(int, found[1].split(".")))


def show(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


@pytest.mark.parametrize(("size", "path"), [(1, ""), (2, ""), (2, "host")], ids=["1", "2", "2 through the host"])
def test_streams_under_load(size, path):
    run(size, RINGREDUCE_GPU_PATH=path)


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 1) for name in TOOLS), ("memcheck", 2), ("order", 2)], ids=lambda value: str(value)
)
def test_compute_sanitizer(name, size):
    sanitizer, tool = find_sanitizer(), TOOLS[name]
    if sanitizer is None:
        pytest.skip("there is no compute-sanitizer: pip install nvidia-cuda-sanitizer-api")
    if (version := version_of(sanitizer)) < tool.oldest:
        pytest.skip(f"{name} takes compute-sanitizer {show(tool.oldest)} or newer, {sanitizer} is {show(version)}")
    wrapper = [
        sanitizer, *tool.options, "--target-processes", "application-only", "--launch-timeout", "100",
        "--error-exitcode", "9",
    ]  # fmt: skip
    output = run(size, SMALL, wrapper, **tool.environment)
    summaries = re.findall(r"SUMMARY: (\d+) (?:error|hazard)", output)
    assert summaries == ["0"] * size, output
