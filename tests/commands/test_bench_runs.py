"""`ringreduce bench`, whole runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from hosts.netns import why_not
from runner.launch import ROOT, clean_environment, find_launcher

from ringreduce.bench.collectives import COLLECTIVES

LAUNCHER = find_launcher()
MIB = 1 << 20
needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


def bench(*arguments, timeout=300):
    command = [sys.executable, "-m", "ringreduce", "bench", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


@needs_mpirun
@pytest.mark.parametrize("name", list(COLLECTIVES))
def test_collective(tmp_path, name):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    options = ["--np", 2, "--sizes", "8,64K", "--repeats", 2, "--json", file, "--plot", picture]
    done = bench(name, *options)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout  # no terminal, no escape codes
    result = json.loads(file.read_text())
    assert result["benchmark"] == name
    assert result["ranks"] == 2
    assert result["command"][:3] == ["ringreduce", "bench", name]
    assert result["machine"]["cores"] >= 1
    libraries = {"ringreduce", "memcpy", "mpi", "gloo"} | ({"arena"} if name == "allreduce" else set())
    assert {(row["library"], row["bytes"]) for row in result["results"]} == {
        (library, nbytes) for library in libraries for nbytes in (8, 65536)
    }
    for row in result["results"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["algbw"] == pytest.approx(row["bytes"] / row["median"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_mpirun
def test_a_peer_without_the_dtype_is_named(tmp_path):
    done = bench("allreduce", "--dtype", "bfloat16", "--sizes", "1K", "--repeats", 1, "--compare", "mpi")
    assert done.returncode == 0, done.stderr
    assert "mpi has no bfloat16" in done.stdout


@needs_mpirun
def test_step(tmp_path):
    """Also what training adds to memory: the buckets are the gradients, and beside them there is next to nothing.

    DDP, which has buckets beside the gradients, shows that the measure finds what there is.
    """
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    few = ["--models", "mlp", "--modes", "none,ringreduce,ddp", "--repeats", 1, "--steps", 2]
    done = bench("step", *few, "--json", file, "--plot", picture)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rows = {row["mode"]: row for row in result["results"]}
    assert list(rows) == ["none", "ringreduce", "ddp"]
    gradients = 4 * rows["none"]["parameters"]
    for row in rows.values():
        assert row["jobs"] == [row["median"]]
        assert row["faults"] > 0
        assert row["taken"] > 3 * gradients  # parameters, gradients, momentum
    assert rows["ringreduce"]["added_beside"] < 32 * MIB
    assert rows["ddp"]["added_beside"] > 0.9 * gradients
    assert len(result["idle_init"]["effects"]) == 1
    assert result["idle_init"]["cpu"] < 0.1
    assert "an idle init() changes the step" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_mpirun
def test_step_under_a_launcher(tmp_path):
    file = tmp_path / "result.json"
    options = ["--models", "gpt", "--modes", "bf16", "--steps", "3", "--json", str(file)]
    done = LAUNCHER.run(2, "-m", "ringreduce", "bench", "step", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(file.read_text())["results"]
    assert (row["model"], row["mode"], row["samples"]) == ("gpt", "bf16", 3)


@needs_mpirun
def test_pretended_hosts(tmp_path):
    file = tmp_path / "result.json"
    options = ["--np", 4, "--pretend-hosts", 2, "--sizes", "64K", "--repeats", 2, "--link-rate", "1gbit"]
    done = bench("hosts", *options, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["hosts"], result["link_bytes_per_s"]) == (2, 125e6)
    for row in result["results"]:
        assert row["busbw"] == pytest.approx(row["bytes"] / row["median"])  # 2(H-1)/H is 1
        assert row["sent_of_least"] is None


@needs_mpirun
def test_hosts_need_hosts():
    done = bench("hosts", "--sizes", "4")
    assert done.returncode == 2
    assert done.stderr.count("ringreduce: all ranks are on one host") == 1


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_hosts_in_namespaces(tmp_path):
    """Every host sends 2(H-1)/H x S and no more than control adds to that."""
    file = tmp_path / "result.json"
    options = ["--hosts", "3", "--ranks-per-host", "2", "--sizes", "4M", "--repeats", "1", "--json", str(file)]
    command = [sys.executable, "benchmarks/hosts.py", *options]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(file.read_text())
    assert (run["ranks"], run["hosts"], run["rate"], run["ranks_per_host"]) == (6, 3, "1gbit", 2)
    assert run["link_bytes_per_s"] > 0
    sent = {row["library"]: row["sent_of_least"] for row in run["results"]}
    assert 0.98 < sent["ringreduce"] < 1.03
    assert 0.98 < sent["arena"] < 1.03
