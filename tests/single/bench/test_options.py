"""`ringreduce bench`: how it starts ranks, what it refuses, its table."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from rich.console import Console
from runner.launch import ROOT

from ringreduce import cli
from ringreduce.bench import launch, tables
from ringreduce.bench.sweep import Row
from ringreduce.bench.turns import Timing

MIB = 1 << 20


def test_table_has_ratios_and_the_limit():
    times = {"ringreduce": 2e-3, "arena": 1e-3, "memcpy": 1e-3, "mpi": 8e-3, "gloo": 1e-3}
    rows = [Row(name, MIB, Timing(t, t, t, 5, 1), 1.5 * MIB / t) for name, t in times.items()]
    console = Console(file=io.StringIO(), width=200)
    console.print(tables.collective_table(rows))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == [
        "size in time algbw busbw memcpy limit mpi ratio gloo ratio",
        "1M tensor 2.00 ms 0.524 0.786 1.00 ms 50% 8.00 ms 4.00x 1.00 ms 0.500x",
        "1M arena 1.00 ms 1.05 1.57 1.00 ms 100% 8.00 ms 8.00x 1.00 ms 1.00x",
    ]


@pytest.mark.parametrize(
    ("environ", "size"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        ({"PMI_SIZE": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8),
    ],
)
def test_knows_its_launcher(environ, size):
    assert launch.launched_size(environ) == size


@pytest.fixture
def by_hand(monkeypatch):
    """A process that no launcher started, with an mpirun that only notes how it was called."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "find_mpirun", lambda: "/mpi/bin/mpirun")
    calls = []

    def become(program, command, environment):
        calls.append(SimpleNamespace(program=program, command=command, environment=environment))
        raise SystemExit(0)

    monkeypatch.setattr("os.execvpe", become)
    return calls


def run_here(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ringreduce", *arguments])
    return cli.main()


def test_becomes_mpirun(monkeypatch, by_hand):
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "bench", "allreduce", "--np", "4", "--sizes", "4")
    (call,) = by_hand
    assert call.program == "/mpi/bin/mpirun"
    arguments = ["-m", "ringreduce", "bench", "allreduce", "--np", "4", "--sizes", "4"]
    assert call.command == ["/mpi/bin/mpirun", "-np", "4", sys.executable, *arguments]
    assert call.environment["OMPI_ALLOW_RUN_AS_ROOT"] == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("allreduce --sizes 3X", "'3X' is not a size"),
        ("allreduce --compare nccl", "there is no peer 'nccl'; choose from memcpy, mpi, gloo"),
        ("allreduce --np 0", "0 is not in the range x>=1"),
        ("allreduce --dtype float8", "'float8' is not one of"),
        ("allreduce --json /nowhere/a.json", "there is no directory /nowhere"),
        ("allreduce --json /", "/ is a directory"),
        ("allreduce --plot a.txt", "a.txt must end in .png"),
        ("allreduce --sizes 1048576G", "ranks need about"),
        ("allreduce --seconds 0", "0.0 is not in the range"),
        ("allreduce --sizes", "requires an argument"),
        ("gossip", "No such command 'gossip'"),
        ("step --modes", "requires an argument"),
        ("step --np 1000", "a training step: 1000 ranks need about 781 GiB"),
        ("step --steps 0", "0 is not in the range x>=1"),
        ("step --models vgg", "there is no model 'vgg'; choose from mlp, gpt"),
        ("gpu --parts kernels", "in its source tree, run python benchmarks/gpu.py"),
        ("gpu", "in its source tree, run python benchmarks/gpu.py"),
        ("hosts --link-rate slow", "'slow' is not a rate"),
        ("hosts --pretend-hosts 4 --np 2", "there are only 2 ranks"),
        ("hosts --iperf --link-rate 1gbit", "--iperf goes with neither"),
    ],
)
def test_wrong_input_gives_one_line(monkeypatch, capsys, by_hand, arguments, message):
    assert run_here(monkeypatch, "bench", *arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ringreduce: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert by_hand == []


def test_no_mpirun(monkeypatch, capsys, by_hand):
    monkeypatch.setattr(launch, "find_mpirun", lambda: None)
    assert run_here(monkeypatch, "bench", "allreduce") == 2
    assert "there is no mpirun: install an MPI" in capsys.readouterr().err


def test_np_and_a_launcher_that_disagree(monkeypatch, capsys, by_hand):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert run_here(monkeypatch, "bench", "allreduce", "--np", "4") == 2
    assert "the launcher has started 2 ranks already" in capsys.readouterr().err


def test_a_launcher_has_started_one_job(monkeypatch, capsys, by_hand):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert run_here(monkeypatch, "bench", "step", "--models", "gpt") == 2
    assert "name one with --models and one with --modes" in capsys.readouterr().err


def test_a_job_that_fails_is_told(monkeypatch, capsys, by_hand):
    monkeypatch.setattr(launch, "find_mpirun", lambda: shutil.which("false"))
    assert run_here(monkeypatch, "bench", "step") == 2
    assert re.search(r"ringreduce: .*false -np 2 .* --modes none ended with status 1\n$", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["bench"], ["bench", "allreduce", "--help"], ["--version"]])
def test_help(monkeypatch, capsys, arguments):
    assert run_here(monkeypatch, *arguments) == 0
    assert "ringreduce" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["click", pytest.param("rich", marks=pytest.mark.thorough)])
def test_works_without_click_and_rich_but_for_the_command_line(missing):
    block = f"import sys; sys.modules[{missing!r}] = None; import ringreduce; "
    run = "import runpy; runpy.run_module('ringreduce', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block + run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = rf"ringreduce: {missing}: .*, so ringreduce bench does not work: pip install '{missing}>=[\d.]+'\n"
    assert re.fullmatch(expected, done.stderr)
    assert "doctor" in done.stdout
