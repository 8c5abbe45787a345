"""`ringreduce bench gpu` without a GPU: its arithmetic, its tables, what it refuses, and whole runs on doubles."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import torch
from rich.console import Console
from runner.launch import ROOT, clean_environment, find_launcher

from ringreduce import cli
from ringreduce.bench import gpu, gpu_clock, gpu_device, gpu_kernels, gpu_models, gpu_report, gpu_step
from ringreduce.bench.gpu_device import Found
from ringreduce.bench.gpu_kernels import KernelRow
from ringreduce.bench.gpu_step import Event, GpuStepRow
from ringreduce.bench.gpu_submission import SubmissionRow
from ringreduce.bench.job import Refused
from ringreduce.bench.measure import Effort, Timing

MIB = 1 << 20
ON_DOUBLES = Path(__file__).with_name("bench_gpu_on_doubles.py")


def timing(seconds):
    return Timing(seconds, seconds, seconds, 5, 1)


# --- loads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [200, 1000, 100 * MIB])
def test_mixed_sizes_sum_to_what_is_asked_for(total):
    sizes = gpu_kernels.mixed_sizes(total)
    assert len(sizes) == 200
    assert sum(sizes) == total
    assert min(sizes) >= 1
    assert sizes == gpu_kernels.mixed_sizes(total)


def test_mixed_sizes_are_mixed():
    sizes = gpu_kernels.mixed_sizes(100 * MIB)
    assert max(sizes) > 1000 * min(sizes)
    assert any(size % 4 for size in sizes)  # tensors that end in the middle of a vector


def test_too_few_bytes_for_the_mixed_sizes():
    with pytest.raises(ValueError, match="200 tensors have 200 elements at least, not 199"):
        gpu_kernels.mixed_sizes(199)


def test_bytes_of_the_cases():
    by_load = {(one.kernel, one.load): one for one in gpu_kernels.cases(400 * MIB)}
    assert {kernel for kernel, _ in by_load} == {"pack", "unpack", "reduce", "merge_rows"}
    for kernel, names in (("pack", "float32 to {}"), ("unpack", "{} to float32")):
        mixed, small = by_load[kernel, "200 tensors, 400M"], by_load[kernel, "2000 tensors of 4K"]
        assert (mixed.nbytes, mixed.target) == (2 * 400 * MIB, 0.9)
        assert (small.nbytes, small.target) == (2 * 2000 * 4096, 0.7)
        for name in ("bfloat16", "float16"):
            assert by_load[kernel, f"200 tensors, 400M, {names.format(name)}"].nbytes == 600 * MIB
    assert by_load["reduce", "2 sources of 200M"].nbytes == 600 * MIB
    assert by_load["reduce", "8 sources of 50M"].nbytes == 450 * MIB
    rows, out = 400 * MIB // 512, 200 * MIB // 512
    assert by_load["merge_rows", f"{rows} rows of 128 into {out}"].nbytes == 600 * MIB + 8 * (rows + out + 1)


@pytest.mark.parametrize(
    ("nbytes", "l2", "sets"), [(800 * MIB, 50 * MIB, 1), (16 * MIB, 50 * MIB, 13), (16 * MIB, 0, 1), (1, 50 * MIB, 256)]
)
def test_buffers_outgrow_the_cache(nbytes, l2, sets):
    assert gpu_kernels.set_count(nbytes, l2) == sets


def test_models():
    with torch.device("meta"):
        millions = {name: sum(p.numel() for p in one.build().parameters()) / 1e6 for name, one in models()}
    assert {name: round(size) for name, size in millions.items()} == {"mlp": 50, "gpt": 136, "gpt-large": 370}
    assert gpu_models.fitting(16 << 30) == ["mlp", "gpt"]
    assert gpu_models.fitting(80 << 30) == ["mlp", "gpt", "gpt-large"]


def models():
    return gpu_models.GPU_MODELS.items()


# --- measuring ------------------------------------------------------------------------------------


class Simulated:
    """A GPU on which a call takes a second, and time passes on its own while calls are queued.

    The host takes a second to queue a call.
    """

    def __init__(self):
        self.host = self.idle_from = 0.0

    def hold(self, seconds):
        self.idle_from = max(self.host, self.idle_from) + 10 * seconds

    def call(self):
        self.host += 1.0
        self.idle_from = max(self.host, self.idle_from) + 1.0

    def mark(self):
        return max(self.host, self.idle_from)

    def passed(self, mark):
        return mark <= self.host

    def between(self, begin, end):
        self.host = max(self.host, end)
        return end - begin


def test_what_the_gpu_waits_for_is_not_timed():
    device = Simulated()
    turn = gpu_clock.Turn("a", [device.call] * 4)
    timings = gpu_clock.alternate(device, [turn], Effort(repeats=3, seconds=60))
    assert timings["a"].median == pytest.approx(1.0)
    assert timings["a"].batch == 4
    assert not turn.is_starved
    assert turn.hold > gpu_clock.SHORTEST_HOLD


def test_a_host_that_cannot_keep_up_is_told():
    device = Simulated()
    turn = gpu_clock.Turn("a", [device.call] * 100)
    gpu_clock.alternate(device, [turn], Effort(repeats=1, seconds=60))
    assert turn.is_starved


def test_waits_are_counted_within_the_steps():
    events = [
        Event("cudaDeviceSynchronize", 0, 5),
        Event(gpu_step.TRACED, 10, 20),
        Event("cudaLaunchKernel", 11, 12),
        Event("cudaMemcpyAsync", 12, 13),
        Event("cudaStreamSynchronize", 13, 14),
        Event("cudaEventSynchronize", 19, 25),
        Event("cudaStreamWaitEvent", 15, 16),
        Event("cudaDeviceSynchronize", 21, 22),  # the end of the trace
    ]
    assert gpu_step.waits_within(events) == 2


def test_a_trace_without_cuda_says_nothing():
    assert gpu_step.waits_within([Event(gpu_step.TRACED, 10, 20), Event("aten::add", 11, 12)]) is None
    assert gpu_step.count_waits(lambda: torch.ones(2) + 1) is None


def test_a_step_of_several_jobs():
    jobs = [
        {"mode": "none", "timing": vars(timing(t)), "waits": w, "memory": m, "jobs": []}
        for t, w, m in ((1, 0, 5), (2, 0.2, 7), (4, 0, 6))
    ]
    row = gpu_step.of_jobs(jobs)
    assert (row["mode"], row["timing"]["median"], row["waits"], row["memory"]) == ("none", 2, 0.2, 7)
    assert row["jobs"] == [1, 2, 4]
    assert gpu_step.of_jobs([*jobs, jobs[0] | {"waits": None}])["waits"] is None


# --- ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("np", "gpus", "nccl", "ranks", "note"),
    [
        (None, 1, 23000, [1, 2], ""),
        (None, 1, 22703, [1], "two ranks on one GPU take NCCL 2.30.0 or newer, torch has 2.27.3"),
        (None, 1, 0, [1], "torch has none"),
        (None, 4, 22703, [1, 2], ""),
        (3, 1, 22703, [3], ""),
    ],
)
def test_numbers_of_ranks(np, gpus, nccl, ranks, note):
    found, notes = gpu.plan_ranks(np, gpus, nccl)
    assert found == ranks
    assert note in " ".join(notes)
    assert bool(note) == bool(notes)


@pytest.mark.parametrize(
    ("ranks", "gpus", "nccl", "can"),
    [(1, 1, 22703, True), (2, 1, 22703, False), (2, 1, 23001, True), (3, 1, 23001, False), (1, 1, 0, False)],
)
def test_what_nccl_connects(ranks, gpus, nccl, can):
    assert gpu.can_connect(ranks, gpus, nccl) == can


# --- rows and tables ------------------------------------------------------------------------------


KERNEL = KernelRow("pack", "200 tensors, 400M", 800_000_000, 0.9, timing(1e-3), timing(0.8e-3), False)
SUBMISSION = SubmissionRow("plan", 2, 4096, timing(4e-6), timing(2e-6), 10e-6)


def step_row(mode, seconds, ranks=1, shared=False, waits=0.0):
    return GpuStepRow("mlp", 50_000_000, ranks, shared, mode, timing(seconds), waits, 3 << 30)


def table_lines(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


def styles(table, column):
    return [getattr(cell, "style", "") for cell in table.columns[column].cells]


@pytest.mark.parametrize("row", [KERNEL, SUBMISSION, step_row("ddp", 1e-3, 2, True)])
def test_rows_survive_json(row):
    assert gpu.restore(json.loads(json.dumps([row.as_dict()]))) == [row]


def test_kernel_table():
    assert KERNEL.share == pytest.approx(0.8)
    free = KernelRow("reduce", "2 sources of 4K", 12288, None, timing(1e-6), timing(1e-6), False)
    table = gpu_report.kernel_table([KERNEL, free])
    assert table_lines(table) == [
        "kernel load time GB/s copy GB/s of the copy must",
        "pack 200 tensors, 400M 1.00 ms 800 1000 80.0% >= 90%",
        "reduce 2 sources of 4K 1.00 us 12.3 12.3 100.0%",
    ]
    assert styles(table, 5) == ["red", ""]


def test_submission_table():
    slow = SubmissionRow("plan", 1, 4096, timing(11e-6), timing(2e-6), 10e-6)
    direct = SubmissionRow("nccl", 1, 4096, timing(3e-6), timing(0), None)
    table = gpu_report.submission_table([SUBMISSION, slow, direct])
    assert table_lines(table)[:2] == [
        "size ranks by submit quartiles must wait both",
        "4K 2 plan 4.00 us 4.00 us - 4.00 us <= 10.0 us 2.00 us 6.00 us",
    ]
    assert styles(table, 3) == ["green", "red", ""]


def test_step_table_at_one_rank():
    rows = [step_row("none", 10e-3), step_row("ringreduce", 10.08e-3), step_row("ddp", 10.2e-3, waits=None)]
    table = gpu_report.step_table(rows)
    assert table_lines(table) == [
        "model parameters ranks mode step quartiles of none must ddp / this must waits MiB",
        "mlp 50.0M 1 none 10.0 ms 10.0 ms - 10.0 ms 1.000 1.020 0 3072",
        "mlp 50.0M 1 ringreduce 10.1 ms 10.1 ms - 10.1 ms 1.008 <= 1.01 1.012 0 3072",
        "mlp 50.0M 1 ddp 10.2 ms 10.2 ms - 10.2 ms 1.020 1.000 - 3072",
    ]
    assert styles(table, 6) == ["", "green", ""]
    assert styles(table, 10)[1] == "green"


def test_step_table_of_two_ranks_on_one_gpu():
    table = gpu_report.step_table([step_row("ringreduce", 11e-3, 2, True, 1.0), step_row("ddp", 10e-3, 2, True)])
    assert table_lines(table)[1] == ("mlp 50.0M 2 on one GPU ringreduce 11.0 ms 11.0 ms - 11.0 ms - 0.909 >= 1 1 3072")
    assert (styles(table, 8)[0], styles(table, 10)[0]) == ("red", "red")


def test_what_plain_torch_waits_for_is_not_our_fault():
    def of_ours(waits):
        rows = [step_row("none", 1e-3, waits=1.0), step_row("ringreduce", 1e-3, waits=waits)]
        return styles(gpu_report.step_table(rows), 10)[1]

    assert (of_ours(1.0), of_ours(1.2)) == ("green", "red")


def test_line_of_the_machine():
    info = {
        "gpu": "NVIDIA H100", "gpus": 1, "driver": "580.65.06", "driver_cuda": 13000, "cuda_runtime": 13010,
        "torch_cuda": "13.0", "nccl": "2.30.1",
    }  # fmt: skip
    line = "NVIDIA H100, driver 580.65.06, CUDA runtime 13.1 (torch's 13.0), NCCL 2.30.1"
    assert gpu_device.gpu_line(info) == line
    assert gpu_device.gpu_line(info | {"gpus": 8, "driver": None, "nccl": None}) == (
        "8 x NVIDIA H100, driver of CUDA 13.0, CUDA runtime 13.1 (torch's 13.0), no NCCL"
    )


# --- what is refused ------------------------------------------------------------------------------


def run_here(monkeypatch, *arguments):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["ringreduce", "bench", "gpu", *arguments])
    return cli.main()


@pytest.mark.parametrize(
    ("probed", "missing"),
    [
        ({"problem": "our library is not built", "runtime": 0, "driver": 0, "devices": []}, "our library is not built"),
        ({"problem": "too old", "runtime": 13000, "driver": 0, "devices": []}, "CUDA finds no GPU: too old"),
        ({"problem": "none seen", "runtime": 13000, "driver": 13000, "devices": []}, "CUDA finds no GPU: none seen"),
        ({"problem": "", "runtime": 13000, "driver": 13000, "devices": []}, "CUDA finds no GPU"),
    ],
)
def test_no_gpu_gives_one_line(monkeypatch, capsys, probed, missing):
    monkeypatch.setattr(gpu_device, "Gpu", type("Gpu", (), {"probe": staticmethod(lambda library: probed)}))
    monkeypatch.setattr("torch.version.cuda", None)
    assert run_here(monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    start, end = "bench gpu needs a GPU, and there is none to use", f"torch {torch.__version__} is built without CUDA"
    assert captured.err == f"ringreduce: {start}: {missing}; {end}\n"


def test_this_machine_is_looked_at():
    if not gpu_device.find().missing:
        pytest.skip("there is a GPU")
    with pytest.raises(Refused, match="bench gpu needs a GPU"):
        gpu.require_gpu()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--size 799", "799 is too small: 200 tensors have 800 bytes at least"),
        ("--size 3X", "'3X' is not a size"),
        ("--size 4G", "--size 4G: the GPU has 16 GiB of memory"),
        ("--parts speed", "there is no part 'speed'; choose from kernels, submission, step"),
        ("--models vgg", "there is no model 'vgg'; choose from mlp, gpt, gpt-large"),
        ("--modes bf16", "there is no mode 'bf16'; choose from none, ringreduce, ddp"),
        ("--modes ,", "--parts, --models and --modes must name at least one each"),
        ("--np 0", "0 is not in the range x>=1"),
    ],
)
def test_wrong_input_gives_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(gpu, "find", lambda: Found(1, 22703, 16 << 30, []))
    assert run_here(monkeypatch, *arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ringreduce: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_launcher_starts_one_job():
    wanted = gpu.Wanted(["step"], 800, ["mlp"], ["none", "ddp"], 5)
    found = Found(1, 22703, 16 << 30, [])
    gpu.check(wanted, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMPI_COMM_WORLD_SIZE", "1")
        with pytest.raises(Refused, match="each part takes a job of its own"):
            gpu.check(wanted, found)


# --- whole runs, on doubles -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubles():
    """The directory of the doubles of CUDA and NCCL."""
    if find_launcher() is None:
        pytest.skip("no mpirun on this machine")
    if shutil.which("make") is None or not (ROOT / "tests" / "doubles").is_dir():
        pytest.skip("the doubles of CUDA and NCCL cannot be built here")
    subprocess.run(["make", "-s", "doubles"], cwd=ROOT, env=clean_environment(), check=True, capture_output=True)
    return ROOT / "build" / "doubles"


def run_on_doubles(doubles, tmp_path, *arguments):
    """Results by part, and the output."""
    file = tmp_path / "result.json"
    command = [sys.executable, str(ON_DOUBLES), str(doubles), "bench", "gpu", "--json", str(file), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout
    content = json.loads(file.read_text())
    assert content["benchmark"] == "gpu"
    assert content["machine"]["gpu"] in done.stdout
    return content, done.stdout


def test_kernels_on_doubles(doubles, tmp_path):
    picture = tmp_path / "result.png"
    options = ["--parts", "kernels", "--size", "64K", "--repeats", "1"]
    if gpu_plot_is_possible():
        options += ["--plot", str(picture)]
    content, output = run_on_doubles(doubles, tmp_path, *options)
    expected = [(one.kernel, one.load, one.nbytes) for one in gpu_kernels.cases(64 << 10)]
    assert [(row["kernel"], row["load"], row["nbytes"]) for row in content["results"]] == expected
    for row in content["results"]:
        assert row["rate"] == pytest.approx(row["nbytes"] / row["timing"]["median"])
        assert row["share"] == pytest.approx(row["rate"] / row["copy_rate"])
        assert math.isfinite(row["share"])
        assert row["share"] > 0
    assert "of the copy" in output
    if gpu_plot_is_possible():
        assert picture.read_bytes().startswith(b"\x89PNG")


def gpu_plot_is_possible():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def test_submission_on_doubles(doubles, tmp_path):
    content, _ = run_on_doubles(doubles, tmp_path, "--parts", "submission", "--np", "2", "--repeats", "2")
    rows = content["results"]
    ways = ["plan", "tensor", "nccl", "torch"]
    assert [(row["way"], row["nbytes"]) for row in rows] == [(way, n) for n in (4 << 10, 25 << 20) for way in ways]
    assert {row["ranks"] for row in rows} == {2} == {content["ranks"]}
    for row in rows:
        assert 0 < row["submit"]["low"] <= row["submit"]["median"] <= row["submit"]["high"] < math.inf
        assert row["target"] == (10e-6 if row["way"] == "plan" else None)


def test_step_on_doubles(doubles, tmp_path):
    options = ["--parts", "step", "--np", "2", "--models", "mlp", "--modes", "none,ringreduce", "--steps", "5"]
    content, output = run_on_doubles(doubles, tmp_path, *options, "--repeats", "1")
    rows = content["results"]
    assert [(row["model"], row["mode"], row["ranks"]) for row in rows] == [("mlp", "none", 2), ("mlp", "ringreduce", 2)]
    for row in rows:
        assert 0 < row["timing"]["median"] < math.inf
        assert len(row["jobs"]) == 1
        assert row["waits"] is None
    assert "training step" in output
