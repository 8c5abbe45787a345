"""benchmarks/memory.py and benchmarks/idle.py: what is in use, and their arithmetic."""

from __future__ import annotations

import mmap
import os
import signal
import time

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from benchmarks import idle, memory_use
from benchmarks.memory import rows_of

MIB = 1 << 20


def test_memory_of_mappings_and_of_malloc():
    """What is freed is no longer taken, wherever it came from."""
    before = memory_use.used()
    for block in (64 * MIB, 64 << 10):
        count = 64 * MIB // block
        blocks = [torch.ones(block // 4) for _ in range(count)]
        assert memory_use.used()[0] - before[0] == pytest.approx(64 * MIB, abs=4 * MIB)
        assert memory_use.used()[1] > 64 * MIB  # they were written
        del blocks
        assert memory_use.used()[0] - before[0] == pytest.approx(0, abs=4 * MIB)


def test_shared_memory_is_counted_in_shares():
    """Two processes have 64 MiB in common: half of it is each one's."""
    before = memory_use.used()[0]
    shared = mmap.mmap(-1, 64 * MIB)
    shared.write(b"x" * (64 * MIB))
    assert memory_use.used()[0] - before == pytest.approx(64 * MIB, abs=4 * MIB)
    reading, writing = os.pipe()
    other = os.fork()
    if other == 0:
        sum(shared[::4096])  # maps the pages here as well
        os.write(writing, b"ready")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(reading, 5)
        assert memory_use.used()[0] - before == pytest.approx(32 * MIB, abs=4 * MIB)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


@pytest.mark.parametrize("lasting", [False, True])
def test_gradients_are_left_out(lasting):
    """Those that are there, or the buckets in which all of them have their places."""
    parameter = torch.zeros(MIB, requires_grad=True)  # 4 MiB
    for has_gradient in (False, True):
        parameter.grad = torch.zeros(MIB) if has_gradient else None
        look = memory_use.Peak([parameter], lasting)
        look()
        assert look.use.taken - look.use.beside == 4 * MIB * (has_gradient or lasting)


def test_the_peak_has_the_gradient_beside_its_place():
    """When it arrives, the gradient is not the parameter's yet."""
    parameter = torch.zeros(MIB, requires_grad=True)
    before = memory_use.used()[0]
    look = memory_use.Peak([parameter], lasting=False)
    (parameter * 2).sum().backward()
    look.remove()
    assert look.use.beside - before >= 4 * MIB


def job_row(mode, faults, beside):
    use = {"taken": 10 * MIB + beside, "beside": beside, "resident": 20 * MIB}
    return {"model": "mlp", "parameters": 7, "mode": mode, "faults": faults, "use": use}


def test_rows_are_medians_over_jobs():
    results = {
        "none": [job_row("none", faults, beside) for faults, beside in [(1, MIB), (9, MIB), (2, MIB)]],
        "ddp": [job_row("ddp", faults, beside) for faults, beside in [(5, 3 * MIB), (4, MIB), (3, 4 * MIB)]],
    }
    none, ddp = rows_of(results)
    assert (none.faults, none.added) == (2, (0, 0, 0))
    assert (ddp.faults, ddp.added) == (4, (2 * MIB, 2 * MIB, 0))
    assert ddp.as_dict()["added"] == {"taken": 2 * MIB, "beside": 2 * MIB, "resident": 0}
    assert rows_of({"ddp": results["ddp"]})[0].as_dict()["added"] is None


@pytest.mark.parametrize(
    ("count", "low", "high", "sure"),
    [(1, 1, 1, 0.0), (5, 1, 5, 0.9375), (6, 1, 6, 0.96875), (9, 2, 8, 0.9609375), (20, 6, 15, 0.9586105)],
)
def test_confidence_of_a_median(count, low, high, sure):
    """As the tables of the sign test have it."""
    values = list(range(count, 0, -1))
    assert idle.confidence_of_median(values) == (low, high, pytest.approx(sure))


def test_effect_of_init_is_beyond_what_a_process_does_anyway():
    plain = [{"before": 1.0, "after": 1.1, "cpu": 0.0}] * 6
    init = [{"before": 2.0, "after": 2.2 * 1.01, "cpu": 1e-5}] * 6
    found = idle.idle_of(plain, init)
    assert (found.effect, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    assert found.cpu == 1e-5
