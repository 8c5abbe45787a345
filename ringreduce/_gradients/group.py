"""The backward passes of one step: counted, and whether what they have accumulated is reduced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Group:
    """One or more passes, of which the last one ends with a reduction.

    Args:
        limit: `backward_passes_per_step`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._passes = 0
        self._holding = False  # under no_sync()
        self.syncing = False  # the pass ends with a reduction
        self.reduced = False  # there was a reduction since step() or zero_grad()
        self.local = False  # a pass has accumulated since
        self.after_reduction = False  # what step() reduces has been accumulated after a reduction

    def begin(self) -> None:
        """After step() or zero_grad()."""
        self._passes = 0
        self.reduced = self.local = False

    def begin_pass(self, cleared: bool) -> None:
        """AssertionError for a pass too many."""
        if not self._holding:
            if self._passes == self._limit and self._limit > 1 and not cleared:
                raise AssertionError(
                    f"more than backward_passes_per_step={self._limit} backward passes before step(); "
                    "call step() and zero_grad(), or raise backward_passes_per_step"
                )
            self._passes = self._passes % self._limit + 1
        self.syncing = not self._holding and self._passes == self._limit
        self.local, self.after_reduction = True, False

    def is_open(self) -> bool:
        """Whether passes have come, and more are to come before the reduction."""
        return 0 < self._passes < self._limit

    def was_reduced(self) -> None:
        """All that has come."""
        self.reduced, self.local = True, False

    def lose(self, kept: bool = False) -> None:
        """A pass has failed: the group begins anew. With `kept` what was accumulated stays."""
        self._passes = 0
        self.local = self.local and kept

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Passes within only accumulate."""
        before, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = before
