"""The plan of one optimizer: agreed on by all ranks, given up, and agreed on anew.

In the first pass nothing is launched: at its end the ranks agree on the parameters, on which gradients are sparse,
and on rank 0's order of arrival, and only then the buckets are laid out. The same when the plan has been given up:
since a parameter has changed its dtype or layout, or a rank's backward pass has failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringreduce._gradients import agreement
from ringreduce._gradients.drift import DriftGuard
from ringreduce._gradients.names import optimizer_name
from ringreduce._gradients.options import AllParameters, Options
from ringreduce._gradients.plan import GradientPlan
from ringreduce._gradients.slot import Slot, layout_of
from ringreduce._runtime import running
from ringreduce.errors import PlanLeftError, RingreduceError

_REPLAN = "asks for a new plan: "  # a reason to leave after which all ranks agree anew at once


def asks_anew(error: PlanLeftError) -> bool:
    """Whether a peer has left the plan since it does not fit any more; else its pass has failed."""
    return _REPLAN in str(error)


class Planning:
    """The plan, if there is one now, and what the ranks agree on it by.

    Args:
        slots: of the optimizer, in registration order; they come and go.
        all_parameters: of the optimizer now, those that are frozen too; for the drift guard.
    """

    def __init__(self, slots: Sequence[Slot], options: Options, all_parameters: AllParameters) -> None:
        self.name = optimizer_name(options.process_set)
        self.meeting = agreement.Meeting(self.name, options.process_set)
        self.plan: GradientPlan | None = None
        self.order: list[int] = []  # in which gradients arrived before there was a plan
        self._slots = slots
        self._options = options
        self._all_parameters = all_parameters
        self._guard: DriftGuard | None = None
        self._guarded: running.Context | None = None  # the life of the library that the guard is for
        self._lost: list[GradientPlan] = []  # failed: their memory may still be in use
        self._repeats = False  # a gradient came twice in one pass (reentrant checkpointing)

    def guard(self) -> DriftGuard:
        """Of this life of the library."""
        if self._guard is None or self._guarded is not running.current:
            self._guard = DriftGuard(self._all_parameters, self._options.process_set)
            self._guarded = running.current
        return self._guard

    def stepped(self) -> None:
        """The optimizer has taken a step."""
        if self._guard is not None and self._guarded is running.current:
            self._guard.stepped()

    def outlived(self) -> bool:
        """Whether there was a plan of an earlier life of the library: what was in flight has ended with that."""
        old = self.plan is not None and self.plan.context is not running.current
        if old:
            self.plan = None
        return old

    def misfit(self) -> str | None:
        """Why the plan does not fit any more; before anything of a step is launched."""
        self.outlived()
        if self.plan is None:
            self.guard().began()
            return None
        for slot in self._slots:
            if slot.layout != layout_of(slot.parameter):
                dtype, strides, shape = layout_of(slot.parameter)
                return f"its parameter {slot.name!r} is now {shape} {dtype} with strides {strides}"
        return None

    def agreed(self) -> GradientPlan:
        """The plan; if there is none, all ranks agree on one."""
        self.outlived()
        if self.plan is None:
            guard = self.guard()
            agreed = agreement.agree(self._slots, self.order, self._options, self.meeting, guard)
            self.order = agreed.order
            if agreed.drifted:
                guard.report(whole=True)
            self.plan = agreement.build(self._slots, agreed, not self._repeats, self._options, self.meeting, guard)
        return self.plan

    def came_twice(self) -> None:
        """A gradient, in one pass: from now on nothing is launched before the end."""
        self._repeats = True
        if self.plan is not None:
            self.plan.early = 0

    def tell(self, why: str) -> None:
        """The peers, who wait for this rank or come to, get an error that says why it does not come."""
        try:
            if self.plan is not None:
                self.plan.leave(why)
            else:
                self.meeting.give_up(why)
        except RingreduceError:
            pass  # the library is shut down or broken: the others know

    def ask_anew(self, why: str) -> None:
        """The peers are to agree with this rank on a new plan at the end of the pass."""
        if self.plan is not None:
            self.plan.leave(_REPLAN + why)

    def drop(self, broken: bool = False) -> None:
        """Give the plan up. A broken one is kept: its memory may still be in use."""
        if self.plan is not None:
            self._lost.append(self.plan) if broken else self.plan.close()
        self.plan = None
