"""`ringreduce bench`: its arithmetic, its way of taking turns, its options, and whole runs."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from hosts.netns import why_not
from rich.console import Console
from runner.launch import ROOT, clean_environment, find_launcher

from ringreduce import cli
from ringreduce.bench import launch, link, machine, measure, memory, report, turns, units
from ringreduce.bench.collectives import COLLECTIVES
from ringreduce.bench.measure import Contender, Effort, Timing
from ringreduce.bench.models import MODELS
from ringreduce.bench.sweep import Row

LAUNCHER = find_launcher()
MIB = 1 << 20
needs_mpirun = pytest.mark.skipif(LAUNCHER is None, reason="no mpirun on this machine")


# --- units -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4", 4), ("16K", 16384), ("16k", 16384), ("1M", MIB), ("64MiB", 64 * MIB), ("2G", 2 << 30)]
)
def test_sizes(text, nbytes):
    assert units.parse_size(text) == nbytes
    assert units.parse_size(units.show_size(nbytes)) == nbytes


def test_sizes_are_sorted_and_each_once():
    assert units.parse_sizes("1M, 4,1024K") == [4, MIB]


@pytest.mark.parametrize("text", ["3X", "", "0", "-4", "1.5M", "K", "4,,8"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_sizes(text)


@pytest.mark.parametrize(("text", "rate"), [("1gbit", 125e6), ("100mbit/s", 12.5e6), ("10G", 1.25e9)])
def test_rates(text, rate):
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "1", "0gbit", "1gbyte"])
def test_bad_rates(text):
    with pytest.raises(ValueError, match="is not a rate"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2e-6, "4.20 us"), (9.996e-5, "100 us"), (0.0335, "33.5 ms"), (0.9999, "1.00 s"), (75.0, "75.0 s")],
)
def test_times(seconds, text):
    assert units.show_time(seconds) == text


# --- what is compared -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "factor"), [("allreduce", 1.5), ("allgather", 0.75), ("broadcast", 1.0)])
def test_bus_factors_of_four_ranks(name, factor):
    assert COLLECTIVES[name].bus_factor(4) == factor


@pytest.mark.parametrize(
    ("name", "nbytes", "elements"),
    [("allreduce", 4, 1), ("allreduce", 1, 1), ("allreduce", 18, 4), ("allgather", 4, 3), ("allgather", 64, 15)],
)
def test_elements_on_three_ranks(name, nbytes, elements):
    assert COLLECTIVES[name].elements(nbytes, itemsize=4, size=3) == elements


@pytest.mark.parametrize(("name", "millions"), [("mlp", 50), ("gpt", 27)])
def test_models_have_the_size_they_are_known_by(name, millions):
    assert round(sum(p.numel() for p in MODELS[name].build().parameters()) / 1e6) == millions


# --- measuring ------------------------------------------------------------------------------------


class OneRank:
    """Stands for a Job of one rank; notes when a sample begins."""

    scattered = False

    def __init__(self, log):
        self.log = log

    def barrier(self):
        self.log.append("barrier")

    def largest(self, values):
        return list(values)

    def durations(self, spans):
        return [end - begin for begin, end in spans]


def alternate(effort, names=("a", "b")):
    log = []
    contenders = [
        Contender(name, lambda value, name=name: log.append(f"rewrite {name}"), lambda name=name: log.append(name))
        for name in names
    ]
    return log, measure.alternate(OneRank(log), contenders, effort)


def test_contenders_take_turns_with_fresh_buffers():
    log, timings = alternate(Effort(repeats=2, seconds=60))
    turn = ["rewrite a", "barrier", "a", "rewrite b", "barrier", "b"]
    assert log == turn * 3  # the first round warms up
    assert [timings[name].samples for name in "ab"] == [2, 2]


def test_batches_of_short_calls():
    log, timings = alternate(Effort(repeats=1, seconds=60, batched=True), names=("a",))
    batch = timings["a"].batch
    assert 1 < batch <= measure.BATCH[1]
    assert log[-batch - 2 :] == ["rewrite a", "barrier", *["a"] * batch]


def test_a_small_budget_leaves_a_few_rounds():
    _, timings = alternate(Effort(repeats=1000, seconds=1e-9))
    assert timings["a"].samples == measure.FEWEST_ROUNDS


class Clockwork(OneRank):
    """A call takes 70 us, whatever the time."""

    def __init__(self, scattered=False):
        super().__init__([])
        self.scattered, self.calls = scattered, 0

    def contender(self):
        return Contender("a", lambda value: None, self.call)

    def call(self):
        self.calls += 1

    def durations(self, spans):
        calls, self.calls = self.calls, 0
        return [7e-5 * calls / len(spans)] * len(spans)


def test_a_sample_is_divided_by_its_calls():
    job = Clockwork()
    job.durations = lambda spans, durations=job.durations: durations(spans * 2)[: len(spans)]  # the warm-up counts, too
    timings = measure.alternate(job, [job.contender()], Effort(1, 60, batched=True))
    assert timings["a"].median == pytest.approx(7e-5)


@pytest.mark.parametrize(("scattered", "batch"), [(False, 14), (True, 714)])  # what fits in 1 ms and in 50 ms
def test_ranks_that_leave_a_barrier_far_apart_call_more_often(scattered, batch):
    job = Clockwork(scattered)
    assert measure.alternate(job, [job.contender()], Effort(1, 60, batched=True))["a"].batch == batch


def test_jobs_take_turns():
    log = []
    jobs = {name: lambda name=name: log.append(name) or len(log) for name in "ab"}
    results = turns.take_turns(jobs, Effort(repeats=9, seconds=1e-9), 3, lambda done, of: log.append((done, of)))
    assert log == ["a", "b", (1, 3), "a", "b", (2, 3), "a", "b", (3, 3)]
    assert results == {"a": [1, 4, 7], "b": [2, 5, 8]}


def test_as_many_rounds_as_there_is_time_for():
    slow = {name: lambda: time.sleep(0.05) for name in "ab"}
    rounds = len(turns.take_turns(slow, Effort(repeats=100, seconds=0.5), 3, lambda done, of: None)["a"])
    assert 3 <= rounds <= 10


def job_row(median, beside):
    memory = {"taken": 10 * MIB + beside, "beside": beside, "resident": 20 * MIB}
    return {"median": median, "parameters": 7, "faults": median, **memory}


def test_rows_are_medians_over_jobs():
    results = {
        "none": [job_row(median, beside) for median, beside in [(1.0, MIB), (9.0, MIB), (2.0, MIB)]],
        "ddp": [job_row(median, beside) for median, beside in [(5.0, 3 * MIB), (4.0, MIB), (3.0, 4 * MIB)]],
    }
    none, ddp = turns.rows_of("mlp", results)
    assert (none.timing.median, none.jobs, none.added) == (2.0, [1.0, 9.0, 2.0], (0, 0, 0))
    assert (ddp.timing.median, ddp.faults, ddp.added) == (4.0, 4.0, (2 * MIB, 2 * MIB, 0))
    assert ddp.as_dict()["added_beside"] == 2 * MIB


@pytest.mark.parametrize(
    ("count", "low", "high", "sure"),
    [(1, 1, 1, 0.0), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 0.9609375), (20, 6, 15, 0.9586105)],
)
def test_confidence_of_a_median(count, low, high, sure):
    """As the tables of the sign test have it."""
    values = list(range(count, 0, -1))
    assert turns.confidence_of_median(values) == (low, high, pytest.approx(sure))


def test_effect_of_init_is_beyond_what_a_process_does_anyway():
    plain = [{"before": 1.0, "after": 1.1, "cpu": 0.0}] * 6
    init = [{"before": 2.0, "after": 2.2 * 1.01, "cpu": 1e-5}] * 6
    idle = turns.idle_of(plain, init)
    assert (idle.effect, idle.low, idle.high) == pytest.approx((0.01, 0.01, 0.01))
    assert idle.cpu == 1e-5


def test_memory_of_mappings_and_of_malloc():
    """What is freed is no longer taken, wherever it came from."""
    before = memory.used()
    for block in (64 * MIB, 64 << 10):
        count = 64 * MIB // block
        blocks = [torch.ones(block // 4) for _ in range(count)]
        assert memory.used()[0] - before[0] == pytest.approx(64 * MIB, abs=4 * MIB)
        assert memory.used()[1] > 64 * MIB  # they were written
        del blocks
        assert memory.used()[0] - before[0] == pytest.approx(0, abs=4 * MIB)


def test_shared_memory_is_counted_in_shares():
    """Two processes have 64 MiB in common: half of it is each one's."""
    before = memory.used()[0]
    shared = mmap.mmap(-1, 64 * MIB)
    shared.write(b"x" * (64 * MIB))
    assert memory.used()[0] - before == pytest.approx(64 * MIB, abs=4 * MIB)
    reading, writing = os.pipe()
    other = os.fork()
    if other == 0:
        sum(shared[::4096])  # maps the pages here as well
        os.write(writing, b"ready")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(reading, 5)
        assert memory.used()[0] - before == pytest.approx(32 * MIB, abs=4 * MIB)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


@pytest.mark.parametrize("lasting", [False, True])
def test_gradients_are_left_out(lasting):
    """Those that are there, or the buckets in which all of them have their places."""
    parameter = torch.zeros(MIB, requires_grad=True)  # 4 MiB
    for has_gradient in (False, True):
        parameter.grad = torch.zeros(MIB) if has_gradient else None
        look = memory.Peak([parameter], lasting)
        look()
        assert look.use.taken - look.use.beside == 4 * MIB * (has_gradient or lasting)


def test_the_peak_has_the_gradient_beside_its_place():
    """When it arrives, the gradient is not the parameter's yet."""
    parameter = torch.zeros(MIB, requires_grad=True)
    before = memory.used()[0]
    look = memory.Peak([parameter], lasting=False)
    (parameter * 2).sum().backward()
    look.remove()
    assert look.use.beside - before >= 4 * MIB


def test_counters_of_an_interface():
    table = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
        "    lo:     100       1    0    0    0     0          0         0      200       2    0\n"
        "  eth0:  123456     789    0    0    0     0          0         0   654321     987    0\n"
    )
    assert link.sent("eth0", table) == (654321, 987)
    with pytest.raises(OSError, match="no network interface 'eth1'"):
        link.sent("eth1", table)


def test_busy_counts_what_others_do():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinner:
        try:
            busy = machine.busy()
        finally:
            spinner.kill()
    assert 0.5 / os.cpu_count() < busy <= 1


# --- what is shown --------------------------------------------------------------------------------


def test_table_has_ratios_and_the_limit():
    times = {"ringreduce": 2e-3, "arena": 1e-3, "memcpy": 1e-3, "mpi": 8e-3, "gloo": 1e-3}
    rows = [Row(name, MIB, Timing(t, t, t, 5, 1), MIB / t, 1.5 * MIB / t) for name, t in times.items()]
    console = Console(file=io.StringIO(), width=200)
    console.print(report.collective_table(rows))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines == [
        "size in time algbw busbw memcpy limit mpi ratio gloo ratio",
        "1M tensor 2.00 ms 0.524 0.786 1.00 ms 50% 8.00 ms 4.00x 1.00 ms 0.500x",
        "1M arena 1.00 ms 1.05 1.57 1.00 ms 100% 8.00 ms 8.00x 1.00 ms 1.00x",
    ]


# --- starting -------------------------------------------------------------------------------------


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
        ("reduce", "No such command 'reduce'"),
        ("step --modes", "requires an argument"),
        ("step --np 1000", "a training step: 1000 ranks need about 781 GiB"),
        ("step --steps 0", "0 is not in the range x>=1"),
        ("step --models vgg", "there is no model 'vgg'; choose from mlp, gpt"),
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
    assert re.search(r"ringreduce: .*false -np 2 .* --modes none .* ended with status 1\n$", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["bench"], ["bench", "allreduce", "--help"], ["--version"]])
def test_help(monkeypatch, capsys, arguments):
    assert run_here(monkeypatch, *arguments) == 0
    assert "ringreduce" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_works_without_click_and_rich_but_for_the_command_line(missing):
    block = f"import sys; sys.modules[{missing!r}] = None; import ringreduce; "
    run = "import runpy; runpy.run_module('ringreduce', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block + run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"ringreduce: the command line needs {missing}: pip install 'ringreduce[bench]'\n"


# --- whole runs -----------------------------------------------------------------------------------


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
    done = LAUNCHER.run(2, "-m", "ringreduce", "bench", "step", *options, timeout=300)
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
