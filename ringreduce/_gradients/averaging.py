"""The exchange that DistributedOptimizer has by default: gradients are averaged, or summed, before each step.

It is the work of a backward pass (backward_pass.py). What is still local when `step()` comes is reduced here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ringreduce._gradients import refusals
from ringreduce._gradients.backward_pass import BackwardPass
from ringreduce._gradients.exchange import GradientExchange
from ringreduce._gradients.options import AllParameters, Named, Options
from ringreduce._gradients.phases import IN_CLEARING, Event
from ringreduce._gradients.rest import reduce_loss, reduce_rest
from ringreduce.errors import RingreduceError


class Averaging(GradientExchange):
    """Of one optimizer.

    Args:
        all_parameters: of the optimizer now, those that are frozen too; for the drift guard.
    """

    def __init__(self, named: Sequence[Named], options: Options, all_parameters: AllParameters) -> None:
        self._pass = BackwardPass(options, all_parameters)
        self._step = self._pass.step
        self.add(named)

    def add(self, named: Sequence[Named]) -> None:
        """More parameters."""
        self._step.parameters.add(named)
        self._step.update()

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """The optimizer has these parameters now: others are reduced no more."""
        gone = self._step.parameters.keep_only(parameters)
        if gone:
            self._step.replan(f"its optimizer has given up {len(gone)} parameter(s), such as {gone[0]!r}")
            self._step.planning.order = []

    def supersede(self) -> None:
        """Another optimizer has one of the parameters now: do nothing more."""
        self.superseded = True
        self._pass.stop()

    def no_sync(self) -> AbstractContextManager[None]:
        """Passes within only accumulate."""
        return self._step.group.hold()

    def before_step(self) -> None:
        """Make up for reductions that no backward pass has made."""
        step = self._step
        try:
            if not step.alone():
                refusals.unnoticed(step.slots)
                self._check_changes()
        except RingreduceError as error:  # others may have skipped this step: they hear of it
            step.give_up(str(error))
            raise
        finally:
            step.parameters.hook_again()
        self._pass.launch()
        step.complete()
        if step.group.local or not step.group.reduced:
            step.group.syncing, step.group.after_reduction = True, step.group.reduced
            step.fit_plan()
            step.launch_rest()
            step.complete()
        undelivered = [slot for slot in step.slots if not slot.delivered]
        if undelivered:
            reduce_rest(undelivered, step.options, step.planning.name)

    def closure_called(self, loss: Any) -> Any:
        """Gradients and loss are reduced, so that all ranks decide alike. The next call is another group of passes."""
        self.before_step()
        self._step.group.begin()
        return loss if self._step.alone() else reduce_loss(loss, self._step.options, self._step.planning.name)

    def step(self, optimizer: torch.optim.Optimizer, run: Callable[[], Any]) -> Any:
        """The optimizer's own, on all ranks with the same gradients."""
        result = run()
        for slot in self._step.slots:
            slot.step()
        self._step.taken()
        return result

    def cleared(self) -> None:
        """zero_grad() is being called: nothing may be in flight."""
        step, planning = self._step, self._step.planning
        if planning.outlived():
            step.phase = step.phase.after(Event.UNDONE)
        cleared = step.phase.after(Event.CLEARED)
        if step.left is not None or (planning.plan is not None and planning.plan.next > 0):
            raise AssertionError(IN_CLEARING)
        if step.group.is_open() and not step.alone():
            self._check_changes()
        for slot in step.slots:
            slot.clear()
        if planning.plan is not None:
            planning.plan.begin_step()
        step.parameters.hook_again()
        step.phase = cleared
        step.group.begin()

    def _check_changes(self) -> None:
        for slot in self._step.slots:
            refusals.changed(slot, self._step.options.op)
