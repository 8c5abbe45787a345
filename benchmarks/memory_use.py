"""Memory that a process takes, such that the sum over processes is what the machine lacks.

Of memory shared by k processes each one counts a k-th (the kernel's PSS, proportional set
size). A bucket that two ranks map is counted by each as a half: two ranks have two buckets, so
each has one. The files of libraries are not counted: all programs of the machine share them.

What is freed does not return to the system at once, and how much of it stays depends on the order
in which blocks of all sizes come and go. So there are several numbers:

    taken      what programs hold: allocated by malloc, and shared memory
    beside     the same without the gradients, or the buckets that are the gradients
    resident   what they hold or have held: pages that the system has given and not got back
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Use(NamedTuple):
    """Bytes, at the peak of each."""

    taken: int
    beside: int
    resident: int


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of glibc: arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, ..."""

    _fields_ = [("fields", ctypes.c_size_t * 10)]

    @property
    def allocated(self) -> int:
        return int(self.fields[4]) + int(self.fields[7])  # in mappings of their own, and from the heaps


def used() -> tuple[int, int]:
    """Taken and resident by this process, now. Without glibc 2.33 both are what is resident."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    pss = {kind: int(kib) << 10 for kind, kib in re.findall(r"^Pss_(\w+):\s*(\d+) kB", rollup, re.MULTILINE)}
    resident = pss["Anon"] + pss["Shmem"]
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return resident, resident
    mallinfo.restype = _MallInfo
    return mallinfo().allocated + pss["Shmem"], resident


class Peak:
    """The most that was used at any gradient's arrival, while it lies beside its place and after.

    That is where a training step takes the most: activations are still there, and gradients
    already. Call the object to look at other moments.

    Args:
        parameters: whose gradients arrive.
        lasting: whether gradients have buckets of their own, whether they have arrived or not.
    """

    def __init__(self, parameters: Iterable[Tensor], lasting: bool) -> None:
        self.use = Use(0, 0, 0)
        self._parameters, self._lasting = list(parameters), lasting
        self._hooks: list[Any] = []
        for parameter in self._parameters:
            self._hooks.append(parameter.register_hook(self))  # type: ignore[no-untyped-call]
            register = parameter.register_post_accumulate_grad_hook
            self._hooks.append(register(self))  # type: ignore[no-untyped-call]

    def __call__(self, _tensor: Tensor | None = None) -> None:
        taken, resident = used()
        now = Use(taken, taken - self._gradients(), resident)
        self.use = Use(*map(max, self.use, now))

    def _gradients(self) -> int:
        return sum(p.nbytes for p in self._parameters if self._lasting or p.grad is not None)

    def remove(self) -> None:
        """No longer look."""
        for hook in self._hooks:
            hook.remove()
