"""`ringreduce bench`: the memory, the traffic and the load of this machine."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from ringreduce.bench import link, machine, memory

MIB = 1 << 20


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
