"""Timing work of the GPU by the GPU's own clock, in turns.

    host   hold  begin  call call call  end          hold ...
    GPU    [ reads of idle memory  ][ call  call  call ][ ...
                                    └── one sample ────┘

What is timed is queued while the GPU is busy with something else, so the host's part (Python,
launches) is not in a sample. If the GPU got there before all was queued, the sample is thrown
away and the next hold is longer. The hold also empties the L2 cache of what is about to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.on_gpu.device import GpuDevice
from ringreduce.bench.turns import Effort, Timing, summary, take_turns

SHORTEST_HOLD = 2e-4  # seconds
LONGEST_HOLD = 0.5


@dataclass
class Turn:
    """Something to time: calls that queue work on the current stream, each on buffers of its own."""

    name: str
    calls: Sequence[Callable[[], Any]]
    hold: float = field(default=SHORTEST_HOLD, init=False)

    @property
    def is_starved(self) -> bool:
        """Whether even the longest hold did not suffice: then the host's time is in the samples."""
        return self.hold > LONGEST_HOLD


def alternate(
    device: GpuDevice,
    turns: Sequence[Turn],
    effort: Effort,
    progress: Callable[[int, int], Any] = lambda done, of: None,
) -> dict[str, Timing]:
    """Seconds a call, by the median sample, of each. The round that warms up finds the holds."""
    seconds = take_turns({one.name: partial(_sample, device, one) for one in turns}, effort, progress)
    return {one.name: summary(seconds[one.name], len(one.calls)) for one in turns}


def _sample(device: GpuDevice, one: Turn) -> float:
    while True:
        device.hold(one.hold)
        begin = device.mark()
        for call in one.calls:
            call()
        end = device.mark()
        starved = device.passed(begin)
        seconds = device.between(begin, end)
        if not starved or one.is_starved:
            return seconds
        one.hold *= 2
