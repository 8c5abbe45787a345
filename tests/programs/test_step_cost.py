"""What the control of a steady training step costs: MPI calls, and system calls, counted.

A job of two ranks trains without and with DistributedOptimizer (step_cost_rank.py). MPI calls are
counted by a library that is loaded before MPI (mpi_counter.cc), system calls by strace.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runner.launch import PATIENCE, clean_environment, find_launcher

HERE = Path(__file__).parent
RANKS = 2
SEGMENT = 2 * (32 << 10)  # what a ring of two hosts moves in messages of 32 KiB
DOUBLING = 16 << 10  # up to here one exchange instead of two
# A bucket rings the host's bell twice, when all have filled it and when it is reduced. A ring is one
# call, and so is each sleep that it ends, or keeps from beginning, in the two threads of a rank.
MOST_FUTEX_CALLS = 8  # a bucket and rank
# malloc keeps what torch frees, or returning it and getting it back would be counted.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(64 << 20)}

LAUNCHER = find_launcher()
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
pytestmark = [
    pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine"),
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine"),
]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counting library, linked with the MPI that mpi4py loads."""
    show = "from mpi4py import MPI; print(open('/proc/self/maps').read())"
    maps = subprocess.run(
        [sys.executable, "-c", show],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout
    mpi = re.search(r"(/\S*)/libmpi[^/\s]*\.so[.\d]*$", maps, re.MULTILINE)
    assert mpi is not None, maps
    library = tmp_path_factory.mktemp("counter") / "libmpi_counter.so"
    assert COMPILER is not None
    options = ["-std=c++17", "-shared", "-fPIC", "-o", str(library), str(HERE / "mpi_counter.cc")]
    subprocess.run([COMPILER, *options, mpi[0], f"-Wl,-rpath,{mpi[1]}"], check=True, timeout=PATIENCE)
    return library


def run(directory: Path, counter: Path, hosts: str = "", tracer: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What each rank wrote. `tracer` is a command that runs each rank."""
    assert LAUNCHER is not None
    start = LAUNCHER.command(RANKS)[:-1]  # without Python; mpirun itself is not counted
    program = [sys.executable, str(HERE / "step_cost_rank.py"), str(directory / "result")]
    done = subprocess.run(
        [*start, *tracer, "env", f"LD_PRELOAD={counter}", *program],
        env=LAUNCHER.env({"STEP_COST_HOSTS": hosts, **KEEPING}),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((directory / f"result.{rank}").read_text()) for rank in range(RANKS)]
    assert all(result["seen"] == 1 for result in results)  # or the counter is not in MPI's way
    return results


@pytest.fixture(scope="module")
def one_host(tmp_path_factory: pytest.TempPathFactory, counter: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A job on one host, under strace where that can be: its folder, and what each rank wrote."""
    directory = tmp_path_factory.mktemp("one_host")
    tracer = [] if no_strace() else ["sh", "-c", 'exec strace -f -o "trace.$$" "$@"', "sh"]
    return directory, run(directory, counter, tracer=tracer)


def test_no_mpi_call_on_one_host(one_host):
    for result in one_host[1]:
        assert result["reduced"] == {"sends": 0, "receives": 0, "tests": 0, "others": 0}


def test_between_hosts_only_the_messages_of_the_ring(tmp_path, counter):
    """Two hosts: every segment of a bucket goes out and comes in 2(H-1) times. Beside them, MPI_Test."""

    def messages_of(nbytes):
        full, rest = divmod(nbytes, SEGMENT)
        return 2 * full + (0 if not rest else 1 if rest <= DOUBLING else 2)

    for result in run(tmp_path, counter, hosts="0,1"):
        assert result["plain"]["sends"] == result["plain"]["receives"] == 0
        messages = sum(map(messages_of, result["buckets"])) * result["steps"]
        assert messages > 0
        assert result["reduced"]["sends"] == messages
        assert result["reduced"]["receives"] == messages
        assert result["reduced"]["others"] == 0


def no_strace() -> str:
    """Why strace cannot be used here, if it cannot."""
    if shutil.which("strace") is None:
        return "no strace on this machine"
    done = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    return "" if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


def system_calls(log: Path, name: str, threads: Sequence[int]) -> Counter[str]:
    """Calls by name, of these threads, between the marks of `name`."""
    lines = log.read_text().splitlines()
    begin, end = (at for at, line in enumerate(lines) if f'"/mark/{name}/' in line)
    found = [re.match(r"(\d+) +(\w+)\(", line) for line in lines[begin + 1 : end]]
    return Counter(match[2] for match in found if match and int(match[1]) in threads)


@pytest.mark.skipif(bool(no_strace()), reason=no_strace())
def test_system_calls_on_one_host_are_only_for_waiting(one_host):
    """Nothing is allocated, mapped, read, written or sent."""
    directory, ranks = one_host
    results = {result["threads"][0]: result for result in ranks}
    logs = list(directory.glob("trace.*"))
    assert len(logs) == RANKS
    for log in logs:
        main_thread = re.search(r"^(\d+) .*\"/mark/", log.read_text(), re.MULTILINE)
        assert main_thread is not None
        result = results.pop(int(main_thread[1]))
        plain, reduced = (system_calls(log, name, result["threads"]) for name in ("plain", "reduced"))
        added, buckets = reduced - plain, len(result["buckets"]) * result["steps"]
        assert set(added) <= {"futex", "sched_yield", "poll"}, added
        assert added["futex"] <= MOST_FUTEX_CALLS * buckets, added
        assert added["poll"] <= buckets, added  # whether the peers are alive, while waiting for them
