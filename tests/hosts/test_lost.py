"""A rank or a host that is lost: named on all hosts, in the same words."""

from __future__ import annotations

import re
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
from hosts.netns import Hosts, why_not
from runner.launch import PATIENCE

# The launcher ends a job that has lost a rank: survivors take no notice of its first signal, and of its second
# only what they have written by then is left.
SCRIPT = """
    import os, signal, sys, time
    import torch
    import ringreduce as rr

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rr.init()
    rr.allreduce(torch.ones(1))
    rr.barrier()
    open(f"{rr.rank()}.ready", "w").close()
    if rr.rank() == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        total = 0.0
        for at in range(10**9):
            total += rr.allreduce(torch.ones(1), op=rr.Sum, name="step").item()
            time.sleep(0.02)
            over = float(os.path.exists("enough"))
            if rr.allreduce(torch.tensor([over]), op=rr.Min, name="over").item():
                break
        text = f"right after {at + 1}" if total == (at + 1) * rr.size() else "wrong"
    except rr.RankLostError as error:
        text = f"{error.rank} {error.host}: {error}"
    with open(f"{rr.rank()}.tmp", "w") as file:
        file.write(text)
    os.rename(file.name, f"{rr.rank()}.text")
    os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def privilege():
    if reason := why_not():
        pytest.skip(reason)


class Job:
    """The script on some hosts. Its output goes to a file."""

    def __init__(self, hosts: Hosts, ranks_per_host: int, victim: int, directory: Path, **environment: str) -> None:
        script = directory / "script.py"
        script.write_text(textwrap.dedent(SCRIPT))
        launcher = hosts.launcher(ranks_per_host)
        self.directory = directory
        self.size = hosts.count * ranks_per_host
        self.process = subprocess.Popen(
            launcher.command(self.size, str(script), str(victim)), cwd=directory, stdin=subprocess.DEVNULL,
            env=launcher.env({"RINGREDUCE_TIMEOUT": str(PATIENCE), **environment}), stdout=subprocess.DEVNULL,
            stderr=(directory / "output").open("w"),
        )  # fmt: skip

    def await_files(self, suffix: str, ranks: list[int]) -> list[str]:
        paths = [self.directory / f"{rank}.{suffix}" for rank in ranks]
        end = time.monotonic() + PATIENCE
        while not all(path.exists() for path in paths):
            assert time.monotonic() < end, self.output()
            assert self.process.poll() is None, self.output()
            time.sleep(0.05)
        return [path.read_text() for path in paths]

    def output(self) -> str:
        return (self.directory / "output").read_text()

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.mark.parametrize(("count", "ranks_per_host", "victim"), [(2, 2, 3), (2, 2, 2), (2, 2, 0), (3, 1, 2)])
def test_death_on_another_host(tmp_path, count, ranks_per_host, victim):
    """A guardian or none, of the root's host or of another one.

    Open MPI aborts a rank whose connection to the dead one closes, and with it the job: who gets as far raises the
    verdict, and it is on the screen in any case.
    """
    with Hosts(count) as hosts:
        job = Job(hosts, ranks_per_host, victim, tmp_path)
        try:
            job.process.wait(PATIENCE)
        finally:
            job.end()
    verdict = rf"rank {victim} \(process \d+ on host host{victim // ranks_per_host}\) has died.*"
    assert re.search(rf"^ ?ringreduce\[\d\]: {verdict}$", job.output(), re.MULTILINE), job.output()
    for path in tmp_path.glob("*.text"):
        text = path.read_text()
        assert re.fullmatch(rf"{victim} host{victim // ranks_per_host}: .+: {verdict}", text), text


def test_a_host_that_vanishes(tmp_path):
    """Its cable is pulled: each side says which hosts it cannot reach."""
    with Hosts(2) as hosts:
        job = Job(hosts, 2, -1, tmp_path, RINGREDUCE_HOST_TIMEOUT="2")
        try:
            job.await_files("ready", [0, 1, 2, 3])
            hosts.inside(hosts.holders[2].pid, "ip link set eth0 down")
            texts = job.await_files("text", [0, 1, 2, 3])
        finally:
            job.end()
    for text in texts[:2]:
        assert "host host1 (ranks 2, 3) cannot be reached any more" in text, texts
    for text in texts[2:]:
        assert "host host0 (ranks 0, 1) cannot be reached any more" in text, texts


def test_a_cut_that_is_mended(tmp_path):
    with Hosts(2) as hosts:
        job = Job(hosts, 2, -1, tmp_path)
        try:
            job.await_files("ready", [0, 1, 2, 3])
            hosts.inside(hosts.holders[2].pid, "ip link set eth0 down")
            time.sleep(3)
            hosts.inside(hosts.holders[2].pid, "ip link set eth0 up")
            (tmp_path / "enough").touch()
            texts = job.await_files("text", [0, 1, 2, 3])
        finally:
            job.end()
    assert len(set(texts)) == 1, texts
    assert texts[0].startswith("right after"), texts
