"""What is reduced for one step of an optimizer: launched, waited for, and what follows from it.

Whether something is reduced is decided from what all ranks know, never from this rank's p.grad: ranks cannot
decide differently. docs/gradients.md has the table of all that a program may do.
"""

from __future__ import annotations

from ringreduce._gradients import refusals
from ringreduce._gradients.delivery import drop, unplace
from ringreduce._gradients.group import Group
from ringreduce._gradients.marks import Counts, Marks
from ringreduce._gradients.options import AllParameters, Options
from ringreduce._gradients.parameters import Parameters
from ringreduce._gradients.phases import Event, Phase
from ringreduce._gradients.plan import GradientPlan
from ringreduce._gradients.planning import Planning, asks_anew
from ringreduce._gradients.rest import reduce_rest, reduce_sparse
from ringreduce._gradients.slot import Kind
from ringreduce._runtime import running
from ringreduce.errors import PlanLeftError, RingreduceError, RingreduceTimeoutError


class Step:
    """Of one optimizer: its phase, its group of passes, its plan.

    Args:
        all_parameters: of the optimizer now, those that are frozen too; for the drift guard.
    """

    def __init__(self, parameters: Parameters, options: Options, all_parameters: AllParameters) -> None:
        self.options = options
        self.parameters = parameters
        self.slots = parameters.slots
        self.planning = Planning(self.slots, options, all_parameters)
        self.group = Group(options.backward_passes_per_step)
        self.phase = Phase.BETWEEN
        self.left: PlanLeftError | None = None  # a peer has given up this pass
        self._counts = Counts()
        self._why_lost = ""  # the last pass that only accumulated, and failed
        self._life: running.Context | None = None  # of the library, in which it is known whether we are alone

    def alone(self) -> bool:
        """Whether this rank is the only one."""
        if self._life is not running.current:
            self._life = running.current
            self.parameters.set_alone(self.options.process_set.size() == 1)
        return self.parameters.alone

    # The plan

    def fit_plan(self) -> None:
        """Before anything of this step is launched: whether the plan is one for the parameters as they are now."""
        self.update()
        why = self.planning.misfit()
        if why is not None:
            self.replan(why)

    def update(self) -> None:
        """Parameters that require grad by now are reduced."""
        new = self.parameters.update()
        if new:
            self.replan(f"it has {len(new)} more parameter(s) that require grad, such as {new[0]!r}")

    def replan(self, why: str) -> None:
        """The plan does not fit any more: all ranks agree anew at the end of this pass."""
        if self.planning.plan is not None:
            self.planning.ask_anew(why)
            self._lose_plan()

    def _lose_plan(self) -> None:
        """Nothing of this step was reduced: gradients are local again, and wait for a new plan."""
        self._undo()
        self.planning.drop()

    def _undo(self) -> None:
        for slot in self.slots:
            unplace(slot)
        self.phase = self.phase.after(Event.UNDONE)

    def _was_left(self, error: PlanLeftError) -> None:
        """A peer has given the plan up: raise its reason, or agree with all of them at the end of this pass."""
        if not asks_anew(error):
            self.forget_pass()
            raise error
        self._lose_plan()

    # Reductions

    def launch_full(self) -> None:
        """Within a pass: launch what is full."""
        if self.planning.plan is None or self.left is not None:
            return
        try:
            self.planning.plan.launch_full()
        except PlanLeftError as error:
            if asks_anew(error):
                self._lose_plan()
            else:  # raised at the end of this pass: it may fail on this rank in the same way before
                self.left = error

    def end_pass(self) -> None:
        """All gradients have come: what is left is launched, unless the pass only accumulates."""
        self.phase = self.phase.after(Event.END)
        if self.left is not None:
            self._was_left(self.left)
        if self.group.syncing:
            self.launch_rest()

    def launch_rest(self) -> None:
        """Launch what is left of the step; first agree on a plan, if there is none."""
        try:
            plan = self.planning.agreed()
            self.phase = self.phase.after(Event.LAUNCH)
            plan.launch_rest(any(slot.late for slot in self.slots), self._counts)
        except PlanLeftError as error:
            self._was_left(error)
            self.launch_rest()
        except ValueError:  # a capture that cannot be: nothing of it has run
            if self.planning.plan is not None:
                self.planning.plan.give_up_step()
            self._undo()  # gradients that are not cleared count as local again
            raise
        except RingreduceTimeoutError:
            self.phase = self.phase.after(Event.UNDONE)  # gradients are local still: synchronize() goes on waiting
            raise
        except RingreduceError:
            self.forget_pass()
            raise

    def complete(self) -> None:
        """Wait for the reduction, if one is in flight, and deliver the results."""
        while self.phase is Phase.REDUCING:
            plan = self.planning.plan
            assert plan is not None
            try:
                said = plan.wait()
            except RingreduceTimeoutError:
                raise  # still in flight: synchronize() waits on
            except PlanLeftError as error:
                self._was_left(error)
                self.launch_rest()
                continue
            except RingreduceError:
                self.planning.drop(broken=True)
                self.forget_pass()
                raise
            self.phase = self.phase.after(Event.REDUCED)
            self._finish(plan, said)

    def _finish(self, plan: GradientPlan, said: Marks) -> None:
        """The buckets are reduced on all ranks: what they did not take along, and what they tell."""
        options, name = self.options, self.planning.name
        reduce_sparse([slot for slot in self.slots if slot.kind is Kind.SPARSE], options, name)
        if said.late:
            reduce_rest(self.slots, options, f"{name}.late")
        appeared = [slot for slot in self.slots if slot.appeared]
        if appeared:
            reduce_rest(appeared, options, name)
            for slot in appeared:
                slot.appeared = False
            self.planning.drop()  # they get places
        self.group.was_reduced()
        if said.steps_differ:
            self._raise_different_steps()
        if said.lost_differ:
            self._raise_lost_passes()
        if plan.drifted():
            self.planning.guard().report()

    def _raise_different_steps(self) -> None:
        said = self.planning.meeting.exchange((self._counts.steps, self.group.after_reduction))
        self._counts = self._counts._replace(steps=max(steps for steps, _ in said))
        refusals.different_steps(self.options.process_set.registered_ranks(), said)

    def _raise_lost_passes(self) -> None:
        lost = self.planning.meeting.exchange((self._counts.lost, self._why_lost))
        self._counts = self._counts._replace(lost=max(count for count, _ in lost))
        refusals.lost_passes(self.options.process_set.registered_ranks(), lost)

    def taken(self) -> None:
        """The optimizer has used the gradients."""
        self._counts = self._counts._replace(steps=self._counts.steps + 1)
        self.group.begin()
        self.planning.stepped()

    # A pass that fails

    def fail(self, why: str) -> None:
        """This rank's pass has raised an exception: its peers hear of it, now or in the next reduction."""
        if self.group.syncing:
            self.planning.tell(why)
        else:
            self._counts, self._why_lost = self._counts._replace(lost=self._counts.lost + 1), why
        self.forget_pass()

    def give_up(self, why: str) -> None:
        """This rank cannot reduce what its peers are about to."""
        self.group.syncing = True
        self.fail(why)

    def keep_pass(self) -> None:
        """One rank alone has what plain torch has after a failed pass."""
        self.phase = self.phase.after(Event.DROPPED)
        self.group.lose(kept=True)
        for slot in self.slots:
            unplace(slot)
        if self.planning.plan is not None:
            self.planning.plan.give_up_step()

    def forget_pass(self) -> None:
        """Nothing of a failed pass stays: the next one begins anew, with a plan that all agree on."""
        self.phase, self.left = self.phase.after(Event.DROPPED), None
        self.group.lose()
        if self.group.syncing:
            self.planning.drop()
        for slot in self.slots:
            drop(slot)
