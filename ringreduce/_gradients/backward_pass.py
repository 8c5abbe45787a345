"""A backward pass: gradients come one by one, and then it ends, or fails.

Each gradient is placed in its bucket as it comes, and full buckets are launched; at the end zeros for what did not
come, the rest is launched, and waited for. So gradients are complete when `backward()` returns. Passes
under `no_sync()`, and those before the last of `backward_passes_per_step`, only accumulate.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

from ringreduce._gradients import edits, hooks, refusals
from ringreduce._gradients.backward import BackwardEnd
from ringreduce._gradients.options import AllParameters, Options
from ringreduce._gradients.parameters import Parameters
from ringreduce._gradients.phases import Event, Phase
from ringreduce._gradients.slot import Kind, Slot
from ringreduce._gradients.step import Step
from ringreduce._runtime import running

_living: weakref.WeakValueDictionary[int, BackwardPass] = weakref.WeakValueDictionary()


class BackwardPass:
    """Of one optimizer: whom hooks (`hooks.Hooked`) and the end of the pass (`backward.Listener`) call.

    Args:
        all_parameters: of the optimizer now, those that are frozen too; for the drift guard.
    """

    _serials = itertools.count()

    def __init__(self, options: Options, all_parameters: AllParameters) -> None:
        self.serial = next(BackwardPass._serials)
        self.parameters = Parameters(self)
        self.step = Step(self.parameters, options, all_parameters)
        self._planning = self.step.planning
        self._end = BackwardEnd(weakref.ref(self))
        self._moved: list[Slot] = []  # set aside in this pass
        self._number = 0
        self._expected = False  # the backward pass that goes on will bring gradients
        self._stopped = False
        _living[self.serial] = self

    def stop(self) -> None:
        """Gradients concern us no more."""
        self._stopped = True
        self.parameters.unhook()
        self._planning.drop()

    # Its gradients

    def before_gradient(self, slot: Slot, gradient: Tensor) -> None:
        """Hook: a gradient of this parameter is about to be accumulated."""
        step = self.step
        alone = step.alone()
        if step.phase is Phase.PASS:
            step.launch_full()
            plan = self._planning.plan
            if not alone and plan is not None and slot.kind is Kind.DENSE and plan.launched(slot):
                self._comes_late(slot)
                return
        if alone:
            return
        refusals.changed(slot, step.options.op)
        edits.check_hooks(slot)
        if slot.before_gradient():
            self._moved.append(slot)
            self._end.arm()
            edits.watch(slot, gradient)

    def after_gradient(self, slot: Slot, parameter: Tensor) -> None:
        """Hook: p.grad has this parameter's gradient."""
        ends = self._end.arm()
        step = self.step
        alone = step.alone()
        if step.phase is not Phase.PASS:
            self._begin(cleared=not (slot.moved or (alone and slot.delivered)))
        if slot.late:
            return
        if not alone:
            if torch.is_grad_enabled():
                refusals.create_graph()
            edits.check_hooks(slot)
            edits.watch(slot, parameter.grad)
        if slot.came == self._number:
            self._planning.came_twice()
        slot.came = self._number
        slot.has_come()
        if not ends:  # nobody tells when this pass is over: step() reduces, and until then p.grad is local
            edits.note(slot)
            return
        if self._planning.plan is None:
            self._planning.order.append(slot.index)
        elif step.group.syncing and slot.view is not None:
            self._planning.plan.place(slot)

    def _comes_late(self, slot: Slot) -> None:
        """Its bucket is being reduced: what comes now is reduced at the end of the pass."""
        self._planning.came_twice()
        if self._planning.plan is not None and not self._planning.plan.can_be_late:
            raise AssertionError(
                f"the gradient of {slot.name!r} came again in one backward pass, after its reduction was launched "
                "(parameters shared between reentrant checkpoints); use checkpoint(use_reentrant=False)"
            )
        if not slot.late:
            slot.late, slot.parameter.grad = True, None

    # Its beginning

    def _begin(self, cleared: bool) -> None:
        if self._stopped:
            return
        begun = self.step.phase.after(Event.GRADIENT)
        self.step.group.begin_pass(cleared)
        self.step.phase = begun
        self._number += 1
        self.step.fit_plan()
        for reference in _living.valuerefs():  # a copy: other threads may make optimizers
            other = reference()
            if other is not None:
                other.expect()

    def expect(self) -> None:
        """An optimizer's pass has begun. If it will come to our parameters too, we hear of its failure before."""
        chosen, context = self.step.options.process_set, running.current
        if context is None or context.sets.get(chosen.process_set_id or 0) is not chosen:
            return  # its process set has gone: the optimizer is alive, and of no use
        if self.step.phase is not Phase.BETWEEN or self._expected or self._stopped or self.step.alone():
            return
        if any(hooks.is_in_graph(slot) for slot in self.step.slots):
            self._expected = self._end.arm()

    # Its end

    def _put_back(self) -> None:
        for slot in self._moved:
            slot.put_back()  # where no gradient came: autograd.grad() does not touch p.grad
        self._moved.clear()

    def launch(self) -> None:
        """The backward pass has ended: launch what is not under way yet."""
        self._put_back()
        self._expected = False
        if self.step.phase is not Phase.PASS:
            return
        self.step.end_pass()
        if not self.step.group.syncing and not self.step.alone():
            for slot in self.step.slots:
                edits.note(slot)

    def complete(self) -> None:
        """Wait for the reduction, if one is in flight."""
        self.step.complete()

    def abandon(self, why: str) -> None:
        """Another optimizer that took part in this pass has lost it, since it failed on a peer: so has this one."""
        if self.step.phase is not Phase.BETWEEN and not self.step.alone():
            self.step.give_up(why)

    def failed(self, why: str) -> None:
        """The backward pass has raised an exception."""
        self._put_back()
        if self._expected and self.step.phase is Phase.BETWEEN:
            self._begin(cleared=True)
        self._expected = False
        if self.step.phase is Phase.PASS:
            if self.step.alone():
                self.step.keep_pass()
            else:
                self.step.fail(why)
