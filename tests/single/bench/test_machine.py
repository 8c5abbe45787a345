"""`ringreduce bench`: the traffic and the load of this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from ringreduce.bench import link, machine


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
