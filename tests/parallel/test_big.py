"""More than 2^31 elements: every count and offset is 64-bit."""

from __future__ import annotations

import pytest
import torch
from oracle import WORLD

import ringreduce as rr

ELEMENTS = 2**31 + 4_099
NEEDED = 3 * 2 * ELEMENTS  # bytes: both ranks' tensors, and as much again for the rest


def available() -> int:
    """MemAvailable in bytes, 0 where it is not known."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


pytestmark = pytest.mark.pair


@pytest.fixture(autouse=True)
def _with_memory():
    memory = min(WORLD.allgather(available()))
    if memory < NEEDED:
        pytest.skip(f"needs {NEEDED >> 20} MiB of free memory, there are {memory >> 20}")


def test_allreduce_in_place(rank):
    tensor = torch.zeros(ELEMENTS, dtype=torch.int8)
    marks = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, ELEMENTS - 1]
    for k, position in enumerate(marks):
        tensor[position] = k + 1 + rank
    rr.allreduce_(tensor, op=rr.Sum)
    assert tensor[marks].tolist() == [2 * (k + 1) + 1 for k in range(len(marks))]
    assert int(tensor.count_nonzero()) == len(marks)
