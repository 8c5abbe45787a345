"""The phases of a step: what happens to gradients, and when.

    BETWEEN ──first hook──► PASS ──end of backward──► REDUCING ──all buckets done──► BETWEEN
                              │                          │
                              └── an exception: what was not reduced is dropped, the peers are told ──► BETWEEN

In a PASS each gradient is placed in its bucket as it comes, and full buckets are launched; at its end zeros
for what did not come, the rest is launched, and waited for. So gradients are complete when `backward()` returns.
Passes under `no_sync()`, and those before the last of `backward_passes_per_step`, only accumulate. What
is still local when `step()` comes is reduced there.

Whether something is reduced is decided from what all ranks know, never from this rank's p.grad: ranks cannot
decide differently. docs/gradients.md has the table of all that a program may do.

In the first pass nothing is launched: at its end the ranks agree on the parameters, on which gradients are sparse,
and on rank 0's order of arrival, and only then the buckets are laid out. The same when the plan has been given up:
since a parameter has changed its dtype or layout, or a rank's backward pass has failed.
"""

from __future__ import annotations

import enum
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ringreduce._gradients import agreement, hooks, refusals
from ringreduce._gradients.backward import BackwardEnd
from ringreduce._gradients.drift import DriftGuard
from ringreduce._gradients.marks import Counts, Marks
from ringreduce._gradients.names import optimizer_name
from ringreduce._gradients.options import Options
from ringreduce._gradients.parameters import Parameters
from ringreduce._gradients.plan import GradientPlan
from ringreduce._gradients.rest import reduce_loss, reduce_rest, reduce_sparse
from ringreduce._gradients.slot import Kind, Slot, layout_of
from ringreduce._runtime import running
from ringreduce.errors import PlanLeftError, RingreduceError, RingreduceTimeoutError

_REPLAN = "asks for a new plan: "  # a reason to leave after which all ranks agree anew at once


class Phase(enum.Enum):
    """Where an optimizer stands."""

    BETWEEN = enum.auto()
    PASS = enum.auto()  # gradients are coming
    REDUCING = enum.auto()  # all buckets are launched


_living: weakref.WeakValueDictionary[int, Reducer] = weakref.WeakValueDictionary()


class Reducer:
    """Reduces the gradients of named parameters over a process set of which we are a member.

    Args:
        all_parameters: of the optimizer now, those that are frozen too; for the drift guard.
    """

    _serials = itertools.count()

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        options: Options,
        all_parameters: Callable[[], Sequence[tuple[str, Tensor]]],
    ) -> None:
        self.serial = next(Reducer._serials)
        self.options = options
        self._name = optimizer_name(options.process_set)
        self._meeting = agreement.Meeting(self._name, options.process_set)
        self._all_parameters = all_parameters
        self._guard: DriftGuard | None = None
        self._guarded: running.Context | None = None  # the life of the library that the guard is for
        self._parameters = Parameters(self)
        self._life: running.Context | None = None  # of the library, in which it is known whether we are alone
        self._slots = self._parameters.slots
        self._end = BackwardEnd(weakref.ref(self))
        self._plan: GradientPlan | None = None
        self._lost: list[GradientPlan] = []  # failed: their memory may still be in use
        self._order: list[int] = []  # in which gradients arrived before there was a plan
        self._repeats = False  # a gradient came twice in one pass (reentrant checkpointing)
        self._moved: list[Slot] = []  # set aside in this pass
        self._phase = Phase.BETWEEN
        self._left: PlanLeftError | None = None  # a peer has given up this pass
        self._pass_number = 0
        self._holding = False  # under no_sync()
        self._passes = 0  # of the current group of backward_passes_per_step
        self._syncing = False  # this pass ends with a reduction
        self._done = False  # there was a reduction since step() or zero_grad()
        self._local = False  # a pass has accumulated since
        self._after_reduction = False  # what step() reduces has been accumulated after a reduction
        self._steps = 0
        self._lost_passes, self._why_lost = 0, ""  # that only accumulated, and failed
        self._expected = False  # the backward pass that goes on will bring gradients
        self.superseded = False  # another optimizer has taken a parameter over
        self.add(named)
        _living[self.serial] = self

    # Parameters and hooks

    def add(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """More parameters."""
        self._parameters.add(named)
        self._update()

    def _update(self) -> None:
        new = self._parameters.update()
        if new:
            self._replan(f"it has {len(new)} more parameter(s) that require grad, such as {new[0]!r}")

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """The optimizer has these parameters now: others are reduced no more."""
        gone = self._parameters.keep_only(parameters)
        if gone:
            self._replan(f"its optimizer has given up {len(gone)} parameter(s), such as {gone[0]!r}")
            self._order = []

    def supersede(self) -> None:
        """Another optimizer has one of the parameters now: do nothing more."""
        self.superseded = True
        self._parameters.unhook()
        self._drop_plan()

    def before_gradient(self, slot: Slot, gradient: Tensor) -> None:
        """Hook: a gradient of this parameter is about to be accumulated."""
        alone = self._alone()
        if self._phase is Phase.PASS:
            self._launch_full()
            if not alone and self._plan is not None and slot.kind is Kind.DENSE and self._plan.launched(slot):
                self._comes_late(slot)
                return
        if alone:
            return
        refusals.changed(slot, self.options.op)
        slot.check_hooks()
        if slot.before_gradient():
            self._moved.append(slot)
            self._end.arm()
            slot.watch(gradient)

    def after_gradient(self, slot: Slot) -> None:
        """Hook: p.grad has this parameter's gradient."""
        ends = self._end.arm()
        if self._phase is not Phase.PASS:
            self._begin_pass(cleared=not (slot.moved or (self._alone() and slot.delivered)))
        if slot.late:
            return
        if not self._alone():
            if torch.is_grad_enabled():
                refusals.create_graph()
            slot.check_hooks()
            slot.watch(slot.parameter.grad)
        if slot.came == self._pass_number:
            self._came_twice()
        slot.came = self._pass_number
        slot.has_come()
        if not ends:  # nobody tells when this pass is over: step() reduces, and until then p.grad is local
            slot.note()
            return
        if self._plan is None:
            self._order.append(slot.index)
        elif self._syncing and slot.view is not None:
            self._plan.place(slot)

    def _launch_full(self) -> None:
        if self._plan is None or self._left is not None:
            return
        try:
            self._plan.launch_full()
        except PlanLeftError as error:
            if _REPLAN in str(error):
                self._lose_plan()
            else:  # raised at the end of this pass: it may fail on this rank in the same way before
                self._left = error

    def _was_left(self, error: PlanLeftError) -> None:
        """A peer has given the plan up: raise its reason, or agree with all of them at the end of this pass."""
        if _REPLAN not in str(error):
            self._forget_pass()
            raise error
        self._lose_plan()

    def _came_twice(self) -> None:
        self._repeats = True
        if self._plan is not None:
            self._plan.early = 0

    def _comes_late(self, slot: Slot) -> None:
        """Its bucket is being reduced: what comes now is reduced at the end of the pass."""
        self._came_twice()
        if self._plan is not None and not self._plan.can_be_late:
            raise AssertionError(
                f"the gradient of {slot.name!r} came again in one backward pass, after its reduction was launched "
                "(parameters shared between reentrant checkpoints); use checkpoint(use_reentrant=False)"
            )
        if not slot.late:
            slot.late, slot.parameter.grad = True, None

    def _begin_pass(self, cleared: bool) -> None:
        limit = self.options.backward_passes_per_step
        if self._phase is Phase.REDUCING:
            raise AssertionError("backward() while gradients are being reduced; call synchronize() first")
        if self.superseded:
            return
        if not self._holding:
            if self._passes == limit and limit > 1 and not cleared:
                raise AssertionError(
                    f"more than backward_passes_per_step={limit} backward passes before step(); "
                    "call step() and zero_grad(), or raise backward_passes_per_step"
                )
            self._passes = self._passes % limit + 1
        self._syncing = not self._holding and self._passes == limit
        self._phase = Phase.PASS
        self._local, self._after_reduction = True, False
        self._pass_number += 1
        self._update()
        self._check_plan()
        for reference in _living.valuerefs():  # a copy: other threads may make optimizers
            other = reference()
            if other is not None:
                other.expect()

    def expect(self) -> None:
        """An optimizer's pass has begun. If it will come to our parameters too, we hear of its failure before."""
        chosen, context = self.options.process_set, running.current
        if context is None or context.sets.get(chosen.process_set_id or 0) is not chosen:
            return  # its process set has gone: the optimizer is alive, and of no use
        if self._phase is not Phase.BETWEEN or self._expected or self.superseded or self._alone():
            return
        if any(hooks.is_in_graph(slot) for slot in self._slots):
            self._expected = self._end.arm()

    def _check_plan(self) -> None:
        """Whether the plan still fits; before anything of this step is launched."""
        if self._plan is not None and self._plan.context is not running.current:
            self._plan = None  # of an earlier life of the library
        if self._plan is None:
            self._drift_guard().began()
            return
        for slot in self._slots:
            if slot.layout != layout_of(slot.parameter):
                self._replan(f"its parameter {slot.name!r} is now {_shown(slot.parameter)}")
                return

    # The listener of BackwardEnd

    def launch(self) -> None:
        """The backward pass has ended: launch what is not under way yet."""
        for slot in self._moved:
            slot.put_back()  # where no gradient came: autograd.grad() does not touch p.grad
        self._moved.clear()
        self._expected = False
        if self._phase is not Phase.PASS:
            return
        self._phase = Phase.BETWEEN
        if self._left is not None:
            self._was_left(self._left)
        if self._syncing:
            self._launch_rest()
        elif not self._alone():
            for slot in self._slots:
                slot.note()

    def complete(self) -> None:
        """Wait for the reduction, if one is in flight, and deliver the results."""
        while self._phase is Phase.REDUCING:
            plan = self._plan
            assert plan is not None
            try:
                said = plan.wait()
            except RingreduceTimeoutError:
                raise  # still in flight: synchronize() waits on
            except PlanLeftError as error:
                self._was_left(error)
                self._launch_rest()
                continue
            except RingreduceError:
                self._lost.append(plan)
                self._plan = None
                self._forget_pass()
                raise
            self._phase = Phase.BETWEEN
            self._finish(plan, said)

    def abandon(self, why: str) -> None:
        """Another optimizer that took part in this pass has lost it, since it failed on a peer: so has this one."""
        if self._phase is not Phase.BETWEEN and not self._alone():
            self._tell(why)
            self._syncing = True
            self._forget_pass()

    def failed(self, why: str) -> None:
        """The backward pass has raised an exception."""
        for slot in self._moved:
            slot.put_back()
        self._moved.clear()
        if self._expected and self._phase is Phase.BETWEEN:
            self._begin_pass(cleared=True)
        self._expected = False
        if self._phase is not Phase.PASS:
            return
        self._phase = Phase.BETWEEN
        if self._alone():
            self._keep_pass()
            return
        if self._syncing:
            self._tell(why)
        else:
            self._lost_passes, self._why_lost = self._lost_passes + 1, why
        self._forget_pass()

    def _keep_pass(self) -> None:
        """One rank alone has what plain torch has after a failed pass."""
        self._passes = 0
        for slot in self._slots:
            slot.unplace()
        if self._plan is not None:
            self._plan.give_up_step()

    def _tell(self, why: str) -> None:
        """The peers, who wait for this rank or come to, get an error that says why it does not come."""
        try:
            if self._plan is not None:
                self._plan.leave(why)
            else:
                self._meeting.give_up(why)
        except RingreduceError:
            pass  # the library is shut down or broken: the others know

    def _forget_pass(self) -> None:
        """Nothing of a failed pass stays: the next one begins anew, with a plan that all agree on."""
        self._phase, self._left = Phase.BETWEEN, None
        self._passes = 0
        if self._syncing:
            self._drop_plan()
        for slot in self._slots:
            slot.drop()
        self._local = False

    # Reductions

    def finish(self) -> None:
        """Before step(): make up for reductions that no backward pass has made."""
        try:
            if not self._alone():
                refusals.unnoticed(self._slots)
                self._check_changes()
        except RingreduceError as error:  # others may have skipped this step: they hear of it
            self._syncing = True
            self._tell(str(error))
            self._forget_pass()
            raise
        finally:
            self._parameters.hook_again()
        self.launch()
        self.complete()
        if self._local or not self._done:
            self._after_reduction = self._done
            self._syncing = True
            self._update()
            self._check_plan()
            self._launch_rest()
            self.complete()
        undelivered = [slot for slot in self._slots if not slot.delivered]
        if undelivered:
            reduce_rest(undelivered, self.options, self._name)

    def reduced_loss(self, loss: Any) -> Any:
        """What a closure has returned, reduced like the gradients, so that all ranks decide alike on it."""
        return loss if self._alone() else reduce_loss(loss, self.options, self._name)

    def _launch_rest(self) -> None:
        try:
            plan = self._plan
            if plan is None or plan.context is not running.current:
                plan = self._plan = self._agree()
            self._phase = Phase.REDUCING
            plan.launch_rest(any(slot.late for slot in self._slots), Counts(self._steps, self._lost_passes))
        except PlanLeftError as error:
            self._was_left(error)
            self._launch_rest()
        except ValueError:  # a capture that cannot be: nothing of it has run
            self._phase = Phase.BETWEEN
            if self._plan is not None:
                self._plan.give_up_step()
            for slot in self._slots:
                slot.unplace()  # gradients that are not cleared count as local again
            raise
        except RingreduceTimeoutError:
            self._phase = Phase.BETWEEN  # gradients are local still: synchronize() goes on waiting
            raise
        except RingreduceError:
            self._forget_pass()
            raise

    def _agree(self) -> GradientPlan:
        guard = self._drift_guard()
        agreed = agreement.agree(self._slots, self._order, self.options, self._meeting, guard)
        self._order = agreed.order
        if agreed.drifted:
            guard.report(whole=True)
        return agreement.build(self._slots, agreed, not self._repeats, self.options, self._meeting, guard)

    def _finish(self, plan: GradientPlan, said: Marks) -> None:
        """The buckets are reduced on all ranks: what they did not take along."""
        reduce_sparse([slot for slot in self._slots if slot.kind is Kind.SPARSE], self.options, self._name)
        if said.late:
            reduce_rest(self._slots, self.options, f"{self._name}.late")
        appeared = [slot for slot in self._slots if slot.appeared]
        if appeared:
            reduce_rest(appeared, self.options, self._name)
            for slot in appeared:
                slot.appeared = False
            self._drop_plan()  # they get places
        self._reduced()
        if said.steps_differ:
            self._raise_different_steps()
        if said.lost_differ:
            self._raise_lost_passes()
        if plan.drifted():
            self._drift_guard().report()

    def _reduced(self) -> None:
        self._local = False
        self._done = True

    def _raise_different_steps(self) -> None:
        said = self._meeting.exchange((self._steps, self._after_reduction))
        self._steps = max(steps for steps, _ in said)
        refusals.different_steps(self.options.process_set.registered_ranks(), said)

    def _raise_lost_passes(self) -> None:
        lost = self._meeting.exchange((self._lost_passes, self._why_lost))
        self._lost_passes = max(count for count, _ in lost)
        refusals.lost_passes(self.options.process_set.registered_ranks(), lost)

    # The plan

    def _replan(self, why: str) -> None:
        """The plan does not fit any more: all ranks agree anew at the end of this pass."""
        if self._plan is not None:
            self._plan.leave(_REPLAN + why)
            self._lose_plan()

    def _lose_plan(self) -> None:
        """Nothing of this step was reduced: gradients are local again, and wait for a new plan."""
        for slot in self._slots:
            slot.unplace()
        self._phase = Phase.PASS if self._phase is Phase.PASS else Phase.BETWEEN
        self._drop_plan()

    def _drop_plan(self) -> None:
        if self._plan is not None:
            self._plan.close()
        self._plan = None

    def _drift_guard(self) -> DriftGuard:
        if self._guard is None or self._guarded is not running.current:
            self._guard = DriftGuard(self._all_parameters, self.options.process_set)
            self._guarded = running.current
        return self._guard

    def _alone(self) -> bool:
        if self._life is not running.current:
            self._life = running.current
            self._parameters.set_alone(self.options.process_set.size() == 1)
        return self._parameters.alone

    def _check_changes(self) -> None:
        for slot in self._slots:
            refusals.changed(slot, self.options.op)

    # What the optimizer tells

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Passes within only accumulate."""
        before, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = before

    def stepped(self) -> None:
        """The optimizer has taken a step."""
        self._steps += 1
        self._begin_group()
        for slot in self._slots:
            slot.step()
        if self._guard is not None and self._guarded is running.current:
            self._guard.stepped()

    def closure_called(self) -> None:
        """A closure of step() was called, and what it left is reduced: its next call is another group of passes."""
        self._begin_group()

    def _begin_group(self) -> None:
        self._done = self._local = False
        self._passes = 0

    def cleared(self) -> None:
        """zero_grad() is being called: nothing may be in flight."""
        if self._plan is not None and self._plan.context is not running.current:
            self._plan = None  # what was in flight has ended with an earlier life of the library
            self._phase = Phase.BETWEEN
        under_way = self._left is not None or (self._plan is not None and self._plan.next > 0)
        if self._phase is Phase.REDUCING or under_way:
            raise AssertionError(
                "zero_grad() while gradients are being reduced; call it before backward() or after step()"
            )
        if 0 < self._passes < self.options.backward_passes_per_step and not self._alone():
            self._check_changes()
        for slot in self._slots:
            slot.clear()
        if self._plan is not None:
            self._plan.begin_step()
        self._parameters.hook_again()
        self._phase = Phase.BETWEEN
        self._begin_group()


def _shown(parameter: Tensor) -> str:
    return f"{tuple(parameter.shape)} {parameter.dtype} with strides {parameter.stride()}"
