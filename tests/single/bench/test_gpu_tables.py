"""benchmarks/gpu.py: its rows and tables."""

from __future__ import annotations

import io
import json

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from rich.console import Console

from benchmarks.on_gpu import device, jobs, tables
from benchmarks.on_gpu.kernels import KernelRow
from benchmarks.on_gpu.step import GpuStepRow
from benchmarks.on_gpu.submission import SubmissionRow
from ringreduce.bench.turns import Timing


def timing(seconds):
    return Timing(seconds, seconds, seconds, 5, 1)


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
    assert jobs.restore(json.loads(json.dumps([row.as_dict()]))) == [row]


def test_kernel_table():
    assert KERNEL.share == pytest.approx(0.8)
    free = KernelRow("reduce", "2 sources of 4K", 12288, None, timing(1e-6), timing(1e-6), False)
    table = tables.kernel_table([KERNEL, free])
    assert table_lines(table) == [
        "kernel load time GB/s copy GB/s of the copy must",
        "pack 200 tensors, 400M 1.00 ms 800 1000 80.0% >= 90%",
        "reduce 2 sources of 4K 1.00 us 12.3 12.3 100.0%",
    ]
    assert styles(table, 5) == ["red", ""]


def test_submission_table():
    slow = SubmissionRow("plan", 1, 4096, timing(11e-6), timing(2e-6), 10e-6)
    direct = SubmissionRow("nccl", 1, 4096, timing(3e-6), timing(0), None)
    table = tables.submission_table([SUBMISSION, slow, direct])
    assert table_lines(table)[:2] == [
        "size ranks by submit quartiles must wait both",
        "4K 2 plan 4.00 us 4.00 us - 4.00 us <= 10.0 us 2.00 us 6.00 us",
    ]
    assert styles(table, 3) == ["green", "red", ""]


def test_step_table_at_one_rank():
    rows = [step_row("none", 10e-3), step_row("ringreduce", 10.08e-3), step_row("ddp", 10.2e-3, waits=None)]
    table = tables.step_table(rows)
    assert table_lines(table) == [
        "model parameters ranks mode step quartiles of none must ddp / this must waits MiB",
        "mlp 50.0M 1 none 10.0 ms 10.0 ms - 10.0 ms 1.000 1.020 0 3072",
        "mlp 50.0M 1 ringreduce 10.1 ms 10.1 ms - 10.1 ms 1.008 <= 1.01 1.012 0 3072",
        "mlp 50.0M 1 ddp 10.2 ms 10.2 ms - 10.2 ms 1.020 1.000 - 3072",
    ]
    assert styles(table, 6) == ["", "green", ""]
    assert styles(table, 10)[1] == "green"


def test_step_table_of_two_ranks_on_one_gpu():
    table = tables.step_table([step_row("ringreduce", 11e-3, 2, True, 1.0), step_row("ddp", 10e-3, 2, True)])
    assert table_lines(table)[1] == ("mlp 50.0M 2 on one GPU ringreduce 11.0 ms 11.0 ms - 11.0 ms - 0.909 >= 1 1 3072")
    assert (styles(table, 8)[0], styles(table, 10)[0]) == ("red", "red")


def test_what_plain_torch_waits_for_is_not_our_fault():
    def of_ours(waits):
        rows = [step_row("none", 1e-3, waits=1.0), step_row("ringreduce", 1e-3, waits=waits)]
        return styles(tables.step_table(rows), 10)[1]

    assert (of_ours(1.0), of_ours(1.2)) == ("green", "red")


def test_line_of_the_machine():
    info = {
        "gpu": "NVIDIA H100", "gpus": 1, "driver": "580.65.06", "driver_cuda": 13000, "cuda_runtime": 13010,
        "torch_cuda": "13.0", "nccl": "2.30.1",
    }  # fmt: skip
    line = "NVIDIA H100, driver 580.65.06, CUDA runtime 13.1 (torch's 13.0), NCCL 2.30.1"
    assert device.gpu_line(info) == line
    assert device.gpu_line(info | {"gpus": 8, "driver": None, "nccl": None}) == (
        "8 x NVIDIA H100, driver of CUDA 13.0, CUDA runtime 13.1 (torch's 13.0), no NCCL"
    )
