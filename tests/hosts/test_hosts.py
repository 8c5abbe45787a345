"""The parallel suite's core over real host borders: hostnames, networks and daemons of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hosts.netns import Hosts, why_not
from runner.marked import files_with
from runner.pytest_stage import PytestStage

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def privilege():
    if reason := why_not():
        pytest.skip(reason)


def bytes_received(hosts: Hosts, host: int) -> int:
    done = subprocess.run(
        hosts.command(host, "ip", "-json", "-s", "link", "show", "eth0"), capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout)[0]["stats64"]["rx"]["bytes"])


@pytest.mark.parametrize(("count", "ranks_per_host"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.thorough)])
def test_mpi_sees_the_hosts(count: int, ranks_per_host: int) -> None:
    """What the other tests stand on: MPI takes the namespaces for hosts and TCP connects them."""
    with Hosts(count) as hosts:
        done = hosts.launcher(ranks_per_host).run(count * ranks_per_host, "tests/hosts/who.py")
        received = [bytes_received(hosts, host) for host in range(count)]
    assert done.returncode == 0, done.stderr
    expected = [
        f"rank {host * ranks_per_host + local} is {local} of {ranks_per_host} on host{host}"
        for host in range(count)
        for local in range(ranks_per_host)
    ]
    assert done.stdout.splitlines() == expected
    assert all(received[host] >= 4 * MIB for host in range(1, count))


@pytest.mark.parametrize(
    ("count", "ranks_per_host", "marks"),
    [
        (2, 2, "smoke"),  # the rest goes over pretended hosts
        *(pytest.param(*hosts, "smoke or hosts", marks=pytest.mark.thorough) for hosts in ((2, 1), (2, 2), (4, 1))),
    ],
)
def test_parallel_core(count: int, ranks_per_host: int, marks: str) -> None:
    """Every test of tests/parallel that is marked so passes."""
    with Hosts(count) as hosts:
        stage = PytestStage(
            f"{count} hosts of {ranks_per_host}",
            count * ranks_per_host,
            [*files_with(*marks.split(" or ")), "-m", marks],
            hosts.launcher(ranks_per_host),
        )
        report = stage.run(sys.executable)
    assert not report.failures(), "\n".join(f"{result.test}: {result.text}" for result in report.failures())
    assert report.count("passed") > 0
