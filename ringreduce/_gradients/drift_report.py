"""What the drift guard says once digests differ: what has drifted, where, by how much, since when."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ringreduce._gradients.drift_compare import Difference, compare, ranks_text, unequal
from ringreduce._gradients.drift_windows import Named
from ringreduce._ops import agreement
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.objects import allgather_object

_SHOWN = 5  # names of other parameters
WHERE = "see docs/debugging.md, 'A drift'"


@dataclass
class Drift:
    """What the ranks have found together; the same on all of them."""

    steps: dict[int, int]  # rank -> how many it has taken
    seen: int  # the step after which the difference was seen
    equal: int | None = None  # the step after which there was none
    first: Difference | None = None  # None: the values are equal by now
    names: list[str] = field(default_factory=list)  # all that differ now

    def text(self) -> str:
        """One line, without a newline."""
        assert self.first is not None
        before = ""
        if self.equal is not None and self.equal < self.seen:
            before = f" (equal after step {self.equal})" if self.equal else " (equal before the first)"
        since = "before the first step" if self.seen == 0 else f"since step {self.seen} at the latest{before}"
        others = [name for name in self.names if name != self.first.name]
        listed = ", ".join(map(repr, others[:_SHOWN])) + (", ..." if len(others) > _SHOWN else "")
        also = f"; {len(others)} more differ{'s' if len(others) == 1 else ''}: {listed}" if others else ""
        return (
            f"ringreduce: the ranks' parameters have drifted apart {since}: {self.first}{also}{self._skew()}. "
            f"{self._advice()} ({WHERE})"
        )

    def _skew(self) -> str:
        if len(set(self.steps.values())) == 1:
            return ""
        by_count: dict[int, list[int]] = {}
        for rank, count in self.steps.items():
            by_count.setdefault(count, []).append(rank)
        return "; steps taken: " + ", ".join(f"{count} on {ranks_text(ranks)}" for count, ranks in by_count.items())

    def _advice(self) -> str:
        assert self.first is not None
        if self.first.rounding:
            return (
                "The differences are of the size of rounding, as where ranks run on other CPUs or libraries: "
                "call broadcast_parameters() now and then, or run all ranks alike"
            )
        if self.seen == 0:
            return "Call broadcast_parameters() once the model is made, and its checkpoint loaded, on the root"
        if len(set(self.steps.values())) > 1:
            return "All ranks take a step, or none does"
        return "Gradients or weights were changed, or a checkpoint was loaded, on a part of the ranks only"

    def warn(self) -> None:
        """On the first rank of the set, and on those that differ from the majority."""
        assert self.first is not None
        rank = running.require().rank
        if rank == min(self.steps) or rank in self.first.odd:
            warnings.warn(self.text(), stacklevel=_program_level())


def _program_level() -> int:
    """The stack level of the program's own line, as warn() counts; ours and torch's are no help to anybody."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("ringreduce", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def look(
    named: Sequence[Named],
    digests: Sequence[int],
    mark: tuple[int, int, int],
    steps: int,
    watched: Sequence[Named],
    now: Callable[[Sequence[Named]], list[int]],
    process_set: ProcessSet,
) -> Drift:
    """With all ranks of the set: compare tensors of which some digests differ.

    Args:
        named: the tensors; digests: of each, as they were when they were seen to differ.
        mark: the step after which they were taken, the round, and the window.
        steps: how many this rank has taken.
        watched: all parameters.
        now: the digests of tensors as they are now.

    Raises RingreduceError on all ranks if the ranks have other parameters.
    """
    said = [(name, f"{tuple(tensor.shape)} {tensor.dtype}") for name, tensor in watched]
    mine = (steps, mark, agreement.digest(said), list(digests))
    everyone = allgather_object(mine, "ringreduce.drift", process_set)
    counts, marks, descriptions, by_rank = zip(*everyone, strict=True)
    if len(set(descriptions)) > 1:
        agreement.raise_difference("the ranks optimize different parameters", said, process_set)
    result = Drift(dict(zip(process_set.registered_ranks(), counts, strict=True)), mark[0])
    if len({mark[1:] for mark in marks}) > 1:  # what was compared are different windows
        result.seen = max(counts)
        named, by_rank = watched, _gathered(now(watched), process_set)
    differences = compare(named, by_rank, process_set)
    real = [difference for difference in differences if not difference.rounding]
    result.first = next(iter(real or differences), None)
    if real:
        places = unequal(_gathered(now(watched), process_set))
        result.names = [watched[place][0] for place in places]
    else:
        result.names = [difference.name for difference in differences]
    return result


def _gathered(digests: list[int], process_set: ProcessSet) -> tuple[list[int], ...]:
    return tuple(allgather_object(digests, "ringreduce.drift.now", process_set))
