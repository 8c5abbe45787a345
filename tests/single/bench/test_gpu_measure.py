"""benchmarks/gpu.py: what it loads the GPU with, and its arithmetic, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import torch

from benchmarks.on_gpu import clock, kernels, models, step
from benchmarks.on_gpu.step import Event
from ringreduce.bench.turns import Effort, Timing

MIB = 1 << 20


def timing(seconds):
    return Timing(seconds, seconds, seconds, 5, 1)


@pytest.mark.parametrize("total", [200, 1000, 100 * MIB])
def test_mixed_sizes_sum_to_what_is_asked_for(total):
    sizes = kernels.mixed_sizes(total)
    assert len(sizes) == 200
    assert sum(sizes) == total
    assert min(sizes) >= 1
    assert sizes == kernels.mixed_sizes(total)


def test_mixed_sizes_are_mixed():
    sizes = kernels.mixed_sizes(100 * MIB)
    assert max(sizes) > 1000 * min(sizes)
    assert any(size % 4 for size in sizes)  # tensors that end in the middle of a vector


def test_too_few_bytes_for_the_mixed_sizes():
    with pytest.raises(ValueError, match="200 tensors have 200 elements at least, not 199"):
        kernels.mixed_sizes(199)


def test_bytes_of_the_cases():
    by_load = {(one.kernel, one.load): one for one in kernels.cases(400 * MIB)}
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
    assert kernels.set_count(nbytes, l2) == sets


def test_models():
    with torch.device("meta"):
        millions = {
            name: sum(p.numel() for p in one.build().parameters()) / 1e6 for name, one in models.GPU_MODELS.items()
        }
    assert {name: round(size) for name, size in millions.items()} == {"mlp": 50, "gpt": 136, "gpt-large": 370}
    assert models.fitting(16 << 30) == ["mlp", "gpt"]
    assert models.fitting(80 << 30) == ["mlp", "gpt", "gpt-large"]


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
    turn = clock.Turn("a", [device.call] * 4)
    timings = clock.alternate(device, [turn], Effort(repeats=3, seconds=60))
    assert timings["a"].median == pytest.approx(1.0)
    assert timings["a"].batch == 4
    assert not turn.is_starved
    assert turn.hold > clock.SHORTEST_HOLD


def test_a_host_that_cannot_keep_up_is_told():
    device = Simulated()
    turn = clock.Turn("a", [device.call] * 100)
    clock.alternate(device, [turn], Effort(repeats=1, seconds=60))
    assert turn.is_starved


def test_waits_are_counted_within_the_steps():
    events = [
        Event("cudaDeviceSynchronize", 0, 5),
        Event(step.TRACED, 10, 20),
        Event("cudaLaunchKernel", 11, 12),
        Event("cudaMemcpyAsync", 12, 13),
        Event("cudaStreamSynchronize", 13, 14),
        Event("cudaEventSynchronize", 19, 25),
        Event("cudaStreamWaitEvent", 15, 16),
        Event("cudaDeviceSynchronize", 21, 22),  # the end of the trace
    ]
    assert step.waits_within(events) == 2


def test_annotations_on_the_gpu_are_not_the_hosts():
    host, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA

    def event(name, begin, end, where):
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=begin, end=end), device_type=where)

    traced = [event(step.TRACED, 10, 20, host), event(step.TRACED, 12, 25, gpu)]
    calls = [event("cudaLaunchKernel", 11, 12, host), event("cudaStreamSynchronize", 13, 14, host)]
    assert step.waits_within(step.of_host([*traced, *calls])) == 1


def test_a_trace_without_cuda_says_nothing():
    assert step.waits_within([Event(step.TRACED, 10, 20), Event("aten::add", 11, 12)]) is None
    assert step.count_waits(lambda: torch.ones(2) + 1) is None


def test_a_step_of_several_jobs():
    jobs = [
        {"mode": "none", "timing": vars(timing(t)), "waits": w, "memory": m, "jobs": []}
        for t, w, m in ((1, 0, 5), (2, 0.2, 7), (4, 0, 6))
    ]
    row = step.of_jobs(jobs)
    assert (row["mode"], row["timing"]["median"], row["waits"], row["memory"]) == ("none", 2, 0.2, 7)
    assert row["jobs"] == [1, 2, 4]
    assert step.of_jobs([*jobs, jobs[0] | {"waits": None}])["waits"] is None
