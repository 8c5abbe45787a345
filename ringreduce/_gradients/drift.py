"""The drift guard: whether all ranks of an optimizer hold the same parameters, told by what travels anyway.

    step() ──► stepped(): digest of window 17      backward ──► write(): into a bucket's tail
    step() ──► stepped(): digest of window 18                    reduction, as always
                   ...                             its end  ──► differs(): the same answer on all ranks
                                                                  └─ yes ─► report(): by value; warn or raise

64 windows cover all parameters, so each is looked at every 64 steps, and all of them once when a plan is agreed
on. Digests are taken after step(), since programs may move weights between two steps (SAM, on each rank in its own
way) and bring them back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ringreduce import _core
from ringreduce._gradients.drift_digests import NOTHING, WHOLE, CpuDigests, Taken
from ringreduce._gradients.drift_gpu import GpuDigests
from ringreduce._gradients.drift_report import Drift, look
from ringreduce._gradients.drift_windows import Named, Piece, cut, watched, whole
from ringreduce._ops import gpus
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.errors import DriftError

WINDOWS = 64


class DriftGuard:
    """Of one optimizer.

    Args:
        parameters: all (name, parameter) of the optimizer, sparse and frozen ones too, in the same order on all
            ranks. Where some are on a GPU, only those are looked at.
        process_set: of which we are a member.

    All ranks of the set call its methods at the same points of the program.
    """

    ELEMENTS = _core.DIGEST_ELEMENTS  # room that it needs in a bucket's tail

    def __init__(self, parameters: Callable[[], Sequence[Named]], process_set: ProcessSet) -> None:
        self._parameters = parameters
        self._set = process_set
        # One rank always agrees with itself.
        self._mode = dict(_core.setting_texts())["RINGREDUCE_DRIFT"] if process_set.size() > 1 else "off"
        self._steps = 0
        self._rounds = 0  # reductions: the same on all ranks, also where one has left a step out
        self._takes = 0  # digests of windows that were taken
        self._block = -1  # of rounds, in which the last one was taken
        self._known: list[Named] = []  # as the optimizer had them when windows were cut
        self._named: list[Named] = []  # those of them that are looked at
        self._windows: list[list[Piece]] = []
        self._digests: CpuDigests | GpuDigests = CpuDigests()
        self._full: Taken | None = None
        self._last: Taken | None = None  # what is written
        self._found = NOTHING  # what differs() has found different
        self._equal: dict[int, int] = {}  # window -> the step after which it was last seen equal
        self._reported: set[str] = set()  # are looked at no more
        self._pause = WINDOWS  # rounds in which differences of rounding, once said, are not looked at
        self._paused_until = 0
        self._rounding_said = False

    @property
    def mode(self) -> str:
        """ "off", "warn" or "error"."""
        return self._mode

    def began(self) -> None:
        """A backward pass begins and there is no plan: the parameters are still as the last step has left them."""
        if self._mode != "off" and (self._full is None or self._full.step != self._steps):
            self._known = []  # a lazy parameter may be there now, or another size
            self._lay_out()
            self._full = self._digests.take(self._steps, (self._rounds, WHOLE), whole(self._named))

    def full_digest(self) -> int:
        """Of all parameters as `began` has found them, else as they are: to be compared when a plan is agreed on."""
        self.began()
        if self._full is None:
            return 0
        self._equal[WHOLE] = self._steps  # unless a report follows
        return self._digests.number(self._full)

    def stepped(self) -> None:
        """After step(): take the digest of the next window, if a reduction is to come that has none yet."""
        self._steps += 1
        block = self._rounds // self._digests.every
        if block == self._block or self._mode == "off":
            return
        self._block = block
        if self._rounds < self._paused_until:
            self._last = NOTHING
            return
        if self._takes % WINDOWS == 0 or not self._windows:
            self._lay_out()
        window = self._takes % len(self._windows)
        self._last = self._digests.take(self._steps, (self._takes, window), self._windows[window])
        self._takes += 1

    def write(self, tail: Tensor) -> None:
        """Write the last digest into a bucket's tail: ELEMENTS elements of any floating point or complex dtype."""
        if self._mode == "off":
            return
        if self._last is None:
            self.began()
            self._last = self._full or NOTHING
        if gpus.backend.holds(tail) != self._digests.on_gpu:  # the model has moved since
            self._move_to(tail)
        self._digests.write(tail, self._last, self._rounds)

    def differs(self, tail: Tensor) -> bool:
        """After the reduction: whether the ranks have written different digests. The same answer on all of them."""
        if self._mode == "off" or self._last is None:
            return False
        taken, differ = self._digests.read(tail, self._last, self._rounds)
        self._rounds += 1
        if differ:
            self._found = taken
        else:
            self._equal[taken.window[1]] = taken.step
        return differ

    def report(self, whole: bool = False) -> None:
        """With all ranks of the set, where differs() is True or (`whole`) the full digests are not the same.

        Warns, once for each parameter, or raises DriftError on all ranks, as RINGREDUCE_DRIFT says. Differences of
        rounding are a warning in any case, given once. RingreduceError on all ranks if they have other parameters.
        """
        taken = self._full if whole else self._found
        assert taken is not None
        drift = self._look(taken)
        if whole:
            self._equal.pop(WHOLE, None)
        self._takes = self._rounds  # where a rank has left a step out, all look at the same windows again
        self._last = NOTHING  # until the next step
        if drift.first is None:
            return
        if drift.first.rounding:
            self._pause_after(drift)
        elif self._mode == "error":
            raise DriftError(drift.text())
        else:
            drift.warn()
            self._reported.update(drift.names, [drift.first.name])
            self._lay_out()

    def _look(self, taken: Taken) -> Drift:
        def now(named: Sequence[Named]) -> list[int]:
            return self._digests.each(self._digests.take(0, (0, WHOLE), whole(named)))

        named = [(piece.name, piece.tensor) for piece in taken.pieces]
        each = self._digests.each(taken)
        drift = look(named, each, (taken.step, *taken.window), self._steps, self._named, now, self._set)
        window = taken.window[1]
        drift.equal = max((self._equal[w] for w in {window, WHOLE} if w in self._equal), default=None)
        return drift

    def _pause_after(self, drift: Drift) -> None:
        """Rounding goes on: look again after some time whether it is still no more than that."""
        if not self._rounding_said:
            drift.warn()
        self._rounding_said = True
        self._paused_until = self._rounds + self._pause
        self._pause *= 2

    def _move_to(self, tail: Tensor) -> None:
        self._known = []
        self._lay_out()
        if gpus.backend.holds(tail) != self._digests.on_gpu:  # nothing is looked at, or what is lies elsewhere
            self._digests = GpuDigests(gpus.backend.index(tail)) if gpus.backend.holds(tail) else CpuDigests()
            self._named, self._windows = [], cut([], WINDOWS // self._digests.every)
        self._last = NOTHING

    def _lay_out(self) -> None:
        """Ask for the parameters, and cut those into windows that are not known yet."""
        parameters = [pair for pair in self._parameters() if pair[0] not in self._reported]
        if len(parameters) == len(self._known) and all(map(_same, parameters, self._known)):
            return
        self._known = parameters
        named = watched(parameters)
        on_gpu = [pair for pair in named if gpus.backend.holds(pair[1])]
        if bool(on_gpu) != self._digests.on_gpu:
            self._digests = GpuDigests(gpus.backend.index(on_gpu[0][1])) if on_gpu else CpuDigests()
        self._named = on_gpu or named
        self._windows = cut(self._named, WINDOWS // self._digests.every)


def _same(a: Named, b: Named) -> bool:
    return a[1] is b[1]
