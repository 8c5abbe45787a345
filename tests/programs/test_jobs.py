"""Whole jobs under mpirun: how they end, and what is left behind.

Each test writes a small script, starts it on a few ranks and looks at the job from outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from runner.launch import PATIENCE, find_launcher

LAUNCHER = find_launcher()

pytestmark = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


class Job:
    """A script on several ranks, in a process group of its own that ends with the test."""

    def __init__(self, directory: Path, size: int, code: str, environment: dict[str, str] | None = None) -> None:
        assert LAUNCHER is not None
        script = directory / "script.py"
        preamble = "import os, signal, sys, time\nimport torch\nimport ringreduce as rr\n"
        script.write_text(preamble + textwrap.dedent(code))
        self.process = subprocess.Popen(
            LAUNCHER.command(size, str(script)),
            cwd=directory,
            env=LAUNCHER.env(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> tuple[int, str]:
        """The launcher's exit status and everything the job printed."""
        try:
            output, _ = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            output, _ = self.process.communicate()
            pytest.fail(f"the job hangs; it printed:\n{output}")
        return self.process.returncode, output

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator:
    """start(size, code, environment=None) -> Job"""
    jobs: list[Job] = []

    def launch(size: int, code: str, environment: dict[str, str] | None = None) -> Job:
        jobs.append(Job(tmp_path, size, code, environment))
        return jobs[-1]

    yield launch
    for job in jobs:
        job.kill()
        job.process.wait()


@pytest.mark.parametrize("status", [3, pytest.param(0, marks=pytest.mark.thorough)])
def test_exit_without_shutdown(start, status):
    """And with an operation that nobody else has. sys.exit() gives its status."""
    found, output = start(
        2,
        f"""
        rr.init()
        print("sum", rr.allreduce(torch.ones(1), op=rr.Sum).item())
        if rr.rank() == 0:
            handle = rr.allreduce_async(torch.ones(1), name="nobody else has this")
        rr.barrier()
        print("end of program")
        sys.exit({status})
        """,
    ).finish()
    assert found == status, output
    assert output.count("sum 2.0") == 2
    assert output.count("end of program") == 2


def test_an_exception_on_one_rank_ends_the_job(start):
    """Its peers wait for it in a collective; the job ends with its traceback all the same."""
    status, output = start(
        3,
        """
        rr.init()
        rr.barrier()
        if rr.rank() == 1:
            raise KeyError("the reason of it all")
        rr.allreduce(torch.ones(1))
        """,
    ).finish()
    assert status != 0
    assert "the reason of it all" in output


@pytest.mark.thorough
def test_an_exception_on_every_rank(start):
    status, output = start(
        2,
        """
        rr.init()
        rr.allreduce(torch.ones(1))
        raise KeyError(f"reason of rank {rr.rank()}")
        """,
    ).finish()
    assert status != 0
    assert "reason of rank" in output


@pytest.mark.thorough  # tests/parallel/test_drift_training.py has each mode
def test_ranks_that_drift_apart(start):
    """One job, in which the library begins anew with each mode; the last one is the error that ends it."""
    code = """
        import warnings
        rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])

        def train(mode):
            os.environ["RINGREDUCE_DRIFT"] = mode
            rr.init()
            torch.manual_seed(rank)
            model = torch.nn.Linear(3, 2)
            optimizer = rr.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
            with warnings.catch_warnings(record=True) as caught:
                model(torch.ones(1, 3)).sum().backward()
                optimizer.step()
            print("trained", mode, *(one.message for one in caught))
            rr.shutdown()

        try:
            train("off" if rank else "error")
        except rr.RingreduceError as error:
            print("told:", error)
        for mode in ("off", "warn", "error"):
            train(mode)
    """
    status, output = start(2, code).finish()
    drifted = "drifted apart before the first step: 'weight' differs between rank 0 and rank 1"
    assert status != 0, output
    assert output.count("told: RINGREDUCE_DRIFT is error on rank 0 and off on rank 1") == 2, output
    lines = output.splitlines()
    assert lines.count("trained off") == 2, output
    warned = [line for line in lines if line.startswith("trained warn")]
    assert len(warned) == 2, output
    assert any(drifted in line for line in warned), output
    assert any(drifted in line for line in lines if line.startswith("ringreduce.errors.DriftError: ")), output
    assert "trained error" not in output


def test_a_rank_that_shuts_down_while_peers_wait(start):
    """Those that wait for it get an error instead of waiting for ever, and end when they like, without shutdown."""
    status, output = start(
        3,
        """
        rr.init()
        rr.barrier()
        if rr.rank() == 2:
            rr.shutdown()
        else:
            try:
                rr.allreduce(torch.ones(1), name="waiting")
            except rr.RingreduceError as error:
                print("told:", error)
            time.sleep(0.3 * rr.rank())
        print("ended")
        """,
    ).finish()
    assert status == 0, output
    assert output.count("ended") == 3
    told = [line for line in output.splitlines() if line.startswith("told:")]
    assert len(told) == 2, output
    assert all("waiting" in line and "2" in line for line in told)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_every_run_gives_the_same_bits(start, jobs):
    """On one host and on two, each twice. Random floats, so that any other order of summation would show."""
    code = """
        import hashlib
        rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
        for hosts in ("a a a", "a b b") * 2:
            os.environ["RINGREDUCE_HOST_ID"] = hosts.split()[rank]
            rr.init()
            generator = torch.Generator().manual_seed(rank)
            digest = hashlib.sha256()
            for dtype in (torch.float32, torch.bfloat16):
                for numel in (1, 1_001, 300_007):
                    mine = torch.randn(numel, generator=generator).to(dtype)
                    digest.update(rr.allreduce(mine).view(torch.uint8).numpy().tobytes())
            print("digest on", hosts, digest.hexdigest())
            rr.shutdown()
        """
    outputs = [start(3, code).finish()[1] for _ in range(jobs)]
    digests = [line for output in outputs for line in output.splitlines() if line.startswith("digest")]
    assert len(digests) == 12 * jobs, outputs
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    "hosts", [pytest.param(None, marks=pytest.mark.thorough), "a b b"], ids=["one host", "two hosts"]
)
def test_killed_jobs_leave_nothing_behind(start, tmp_path, hosts):
    """SIGKILL on every rank, in the middle of a collective."""
    before = leftovers()
    code = """
        rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ["PMI_RANK"])
        hosts = os.environ.get("TEST_HOSTS")
        if hosts:
            os.environ["RINGREDUCE_HOST_ID"] = hosts.split()[rank]
        rr.init()
        tensor = torch.ones(1 << 20)
        rr.allreduce_(tensor)
        with open(f"{rr.rank()}.tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename(file.name, f"{rr.rank()}.pid")
        while True:
            rr.allreduce_(tensor)
        """
    job = start(3, code, {"TEST_HOSTS": hosts} if hosts else None)
    pids = ranks_of(job, tmp_path, 3)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    status, _ = job.finish()
    assert status != 0
    assert leftovers(pids) - before == set()


def ranks_of(job: Job, directory: Path, size: int) -> list[int]:
    """The pids of a job's ranks, once all have written them."""
    files = [directory / f"{rank}.pid" for rank in range(size)]
    deadline = time.monotonic() + PATIENCE
    while not all(file.exists() for file in files):
        if job.process.poll() is not None or time.monotonic() > deadline:
            job.kill()
            pytest.fail(f"the ranks did not start:\n{job.finish()[1]}")
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def leftovers(pids: Sequence[int] = ()) -> set[str]:
    """What of ours lies in the places where shared memory and sockets go; of these ranks only, if there are any.

    A name has the pid of its maker. Those of other jobs of the moment come, stay and go as they like.
    """
    places = [Path("/dev/shm"), Path("/tmp"), Path(os.environ.get("TMPDIR", "/tmp"))]
    names = {path for place in places for path in place.glob("*ringreduce*")}
    return {str(path) for path in names if not pids or {*map(str, pids)} & {*re.findall(r"\d+", path.name)}}
