"""`ringreduce bench`, benchmarks/memory.py and benchmarks/idle.py: whole runs, as short as they can be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from hosts.netns import why_not
from runner.launch import PATIENCE, ROOT, clean_environment, find_launcher

LAUNCHER = find_launcher()
MIB = 1 << 20
needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


def run(*command, timeout=PATIENCE):
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def bench(*arguments):
    return run("-m", "ringreduce", "bench", *arguments)


@needs_mpirun
def test_collective(tmp_path):
    """Also that a peer without the dtype is named. All that can be timed is in tests/parallel."""
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    options = ["--dtype", "bfloat16", "--sizes", "8,64K", "--repeats", 2, "--json", file, "--plot", picture]
    done = bench("allreduce", *options)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout  # no terminal, no escape codes
    assert "mpi has no bfloat16" in done.stdout
    result = json.loads(file.read_text())
    assert result["benchmark"] == "allreduce"
    assert result["ranks"] == 2
    assert result["command"][:3] == ["ringreduce", "bench", "allreduce"]
    assert result["machine"]["cores"] >= 1
    assert {(row["library"], row["bytes"]) for row in result["results"]} == {
        (library, nbytes) for library in ("ringreduce", "arena", "memcpy", "gloo") for nbytes in (8, 65536)
    }
    for row in result["results"]:
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["algbw"] == pytest.approx(row["bytes"] / row["median"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_mpirun
@pytest.mark.parametrize("modes", ["none", pytest.param("none,ddp", marks=pytest.mark.thorough)])
def test_step(tmp_path, modes):
    """Jobs of one rank: what is shown and written of several."""
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "result.json", tmp_path / "result.png"
    few = ["--np", 1, "--models", "small", "--modes", modes, "--repeats", 1, "--steps", 1]
    done = bench("step", *few, "--json", file, "--plot", picture)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert [row["mode"] for row in result["results"]] == modes.split(",")
    for row in result["results"]:
        assert row["jobs"] == [row["median"]]
        assert row["median"] > 0
    assert "of none" in done.stdout
    assert result["machine"]["cpu"] in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.thorough  # as test_step, which starts such jobs itself
@needs_mpirun
def test_step_under_a_launcher(tmp_path):
    file = tmp_path / "result.json"
    options = ["--models", "small", "--modes", "bf16", "--steps", "3", "--json", str(file)]
    done = LAUNCHER.run(2, "-m", "ringreduce", "bench", "step", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(file.read_text())["results"]
    assert (row["model"], row["mode"], row["samples"]) == ("small", "bf16", 3)


@needs_mpirun
@pytest.mark.parametrize(
    ("ranks", "modes"),
    [(1, "none,ringreduce"), pytest.param(2, "none,ringreduce,ddp", marks=pytest.mark.thorough)],
    ids=["1 rank", "2 ranks, DDP"],
)
def test_memory(tmp_path, ranks, modes):
    """What training adds: the buckets are the gradients, and beside them there is next to nothing.

    DDP, which has buckets beside the gradients, shows that the measure finds what there is.
    """
    file = tmp_path / "result.json"
    few = ["--np", ranks, "--models", "small", "--modes", modes, "--repeats", 1, "--steps", 1]
    done = run("benchmarks/memory.py", *few, "--json", file)
    assert done.returncode == 0, done.stderr
    rows = {row["mode"]: row for row in json.loads(file.read_text())["results"]}
    assert list(rows) == modes.split(",")
    gradients = 4 * rows["none"]["parameters"]
    for row in rows.values():
        assert row["use"]["taken"] > 3 * gradients  # parameters, gradients, momentum
    assert rows["ringreduce"]["added"]["beside"] < 32 * MIB
    if "ddp" in rows:
        assert rows["ddp"]["added"]["beside"] > 0.9 * gradients
    assert "resident" in done.stdout


@pytest.mark.thorough  # of ours, and seldom changes
def test_idle(tmp_path):
    file = tmp_path / "result.json"
    done = run("benchmarks/idle.py", "--model", "small", "--steps", 1, "--repeats", 1, "--sleep", 2, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert len(result["effects"]) == 1
    assert result["cpu"] < 0.1
    assert "an idle init() changes the step" in done.stdout


@needs_mpirun
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_pretended_hosts(tmp_path, ranks):
    file = tmp_path / "result.json"
    options = ["--np", ranks, "--pretend-hosts", 2, "--sizes", "64K", "--repeats", 2, "--link-rate", "1gbit"]
    done = bench("hosts", *options, "--json", file)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert (result["hosts"], result["link_bytes_per_s"]) == (2, 125e6)
    for row in result["results"]:
        assert row["busbw"] == pytest.approx(row["bytes"] / row["median"])  # 2(H-1)/H is 1
        assert row["sent_of_least"] is None


@pytest.mark.thorough  # a message
@needs_mpirun
def test_hosts_need_hosts():
    done = bench("hosts", "--sizes", "4")
    assert done.returncode == 2
    assert done.stderr.count("ringreduce: all ranks are on one host") == 1


@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_hosts_in_namespaces(tmp_path, ranks):
    """Every host sends 2(H-1)/H x S and no more than control adds to that."""
    file = tmp_path / "result.json"
    options = ["--hosts", "3", "--ranks-per-host", ranks, "--sizes", "4M", "--repeats", "1", "--json", str(file)]
    command = ["benchmarks/hosts.py", *options]
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(file.read_text())
    assert (result["ranks"], result["hosts"], result["ranks_per_host"]) == (3 * ranks, 3, ranks)
    assert result["rate"] == "1gbit"
    assert result["link_bytes_per_s"] > 0
    sent = {row["library"]: row["sent_of_least"] for row in result["results"]}
    assert 0.98 < sent["ringreduce"] < 1.03
    assert 0.98 < sent["arena"] < 1.03
