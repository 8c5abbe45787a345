"""What a rank sees of the GPUs, and which one it takes: pure functions of what it was told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ringreduce._placement.nvml import Gpu


class Report(NamedTuple):
    """What a rank sees of the GPUs."""

    devices: int  # those that torch can use, numbered from 0
    chosen: int | None = None  # the program's choice, where CUDA runs already
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    gpus: tuple[Gpu, ...] = ()  # by device number; empty where that is not known for sure
    problem: str = ""  # why it is not known

    def device(self, local_rank: int) -> int:
        """The device that this rank uses."""
        return local_rank % self.devices if self.chosen is None else self.chosen

    def entries(self) -> list[str]:
        """The entry of CUDA_VISIBLE_DEVICES behind each device; its number where that is not set."""
        listed = [] if self.visible is None else entries(self.visible)
        return listed if len(listed) == self.devices else [str(number) for number in range(self.devices)]

    def describe(self, device: int) -> str:
        """The device for people."""
        return str(self.gpus[device]) if self.gpus else f"GPU {self.entries()[device]}"


class Seat(NamedTuple):
    """A rank, where it runs, and what it sees: None where it has no GPU."""

    rank: int
    host: int
    hostname: str
    local_rank: int
    cores: frozenset[int]
    report: Report | None


def by_device(machine: Sequence[Gpu], visible: str | None, order: str | None) -> tuple[Gpu, ...]:
    """The machine's GPUs as CUDA numbers them; empty where only CUDA knows how.

    Args:
        machine: all GPUs in the order of PCI ids, as `nvml.read` gives them.
        visible: CUDA_VISIBLE_DEVICES: indices, or uuids of which the beginning suffices. CUDA
            stops at the first entry that names no GPU.
        order: CUDA_DEVICE_ORDER. Unless it is PCI_BUS_ID, CUDA numbers fast GPUs first, which
            changes nothing where all are alike.
    """
    whole = [gpu for gpu in machine if gpu.uuid.startswith("GPU-")]
    partitioned = len(whole) < len(machine)  # then a number means an instance, as CUDA likes
    if partitioned or (order != "PCI_BUS_ID" and len({gpu.name for gpu in whole}) > 1):
        numbered: list[Gpu] = []
    else:
        numbered = whole
    if visible is None:
        return tuple(numbered)
    found: list[Gpu] = []
    for entry in entries(visible):
        if entry.isdigit():
            matches = numbered[int(entry) : int(entry) + 1]
        else:
            matches = [gpu for gpu in machine if gpu.uuid.startswith(entry)]
        if len(matches) != 1:
            break
        found += matches
    return tuple(found)


def entries(visible: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES that CUDA looks at: -1 ends the list."""
    listed = [entry.strip() for entry in visible.split(",") if entry.strip()]
    return listed[: listed.index("-1")] if "-1" in listed else listed


def ranks(numbers: Iterable[int]) -> str:
    """For people: "rank 3", or "ranks 0-2, 8"."""
    numbers = frozenset(numbers)
    return ("rank " if len(numbers) == 1 else "ranks ") + spans(numbers)


def spans(numbers: Iterable[int]) -> str:
    """{0, 1, 2, 8} as "0-2, 8"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
