"""benchmarks/gpu.py: numbers of ranks, and what it refuses."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import torch

from benchmarks import gpu
from benchmarks.on_gpu import device, jobs
from benchmarks.on_gpu.device import Found
from ringreduce import cli
from ringreduce.bench.job import Refused


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
    found, notes = jobs.plan_ranks(np, gpus, nccl)
    assert found == ranks
    assert note in " ".join(notes)
    assert bool(note) == bool(notes)


@pytest.mark.parametrize(
    ("ranks", "gpus", "nccl", "can"),
    [(1, 1, 22703, True), (2, 1, 22703, False), (2, 1, 23001, True), (3, 1, 23001, False), (1, 1, 0, False)],
)
def test_what_nccl_connects(ranks, gpus, nccl, can):
    assert jobs.can_connect(ranks, gpus, nccl) == can


def run_here(monkeypatch, *arguments):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", *arguments])
    return cli.run(gpu.gpu, "benchmarks/gpu.py")


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
    monkeypatch.setattr(device, "Gpu", type("Gpu", (), {"probe": staticmethod(lambda library: probed)}))
    monkeypatch.setattr("torch.version.cuda", None)
    assert run_here(monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    start, end = "there is no GPU to use", f"torch {torch.__version__} is built without CUDA"
    assert captured.err == f"benchmarks/gpu.py: {start}: {missing}; {end}\n"


def test_this_machine_is_looked_at():
    if not device.find().missing:
        pytest.skip("there is a GPU")
    with pytest.raises(Refused, match="there is no GPU to use"):
        jobs.require_gpu()


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
    monkeypatch.setattr(jobs, "find", lambda: Found(1, 22703, 16 << 30, []))
    assert run_here(monkeypatch, *arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("benchmarks/gpu.py: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_launcher_starts_one_job():
    wanted = jobs.Wanted(["step"], 800, ["mlp"], ["none", "ddp"], 5)
    found = Found(1, 22703, 16 << 30, [])
    jobs.check(wanted, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMPI_COMM_WORLD_SIZE", "1")
        with pytest.raises(Refused, match="each part takes a job of its own"):
            jobs.check(wanted, found)
