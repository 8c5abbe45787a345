"""When gradients are reduced: the hooks of DistributedOptimizer and the state behind them.

    backward pass   hook: gradient of p1 comes ─► its view is filled ─► bucket 0 full: launch
                    hook: gradient of p0 comes ─► ...                ─► bucket 1 full: launch
                    end of backward: zeros for what did not come, launch the rest, wait

So gradients are complete when `backward()` returns. Passes under `no_sync()`, and those
before the last of `backward_passes_per_step`, only accumulate. What is still local when
`step()` comes is reduced there.

In the first pass nothing is launched: at its end the ranks agree on the parameters, on
which gradients are sparse, and on rank 0's order of arrival, and only then the buckets are
laid out. A parameter of which no rank had a gradient is left out until one has.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ringreduce import _context, _planning
from ringreduce._backward import BackwardEnd
from ringreduce._options import Options
from ringreduce._plan import GradientPlan
from ringreduce._slots import Kind, Slot
from ringreduce._sparse import SparseReduction
from ringreduce.errors import RingreduceError, RingreduceTimeoutError
from ringreduce.process_set import ProcessSet
from ringreduce.reduction import ReduceOp


class Reducer:
    """Reduces the gradients of named parameters over a process set of which we are a member."""

    _serials = itertools.count()

    def __init__(self, named: Sequence[tuple[str, Tensor]], options: Options) -> None:
        self.serial = next(Reducer._serials)
        self.options = options
        self._slots: list[Slot] = []  # those with hooks, in registration order
        self._frozen: list[tuple[str, Tensor]] = []  # parameters without requires_grad so far
        self._hooks: list[Any] = []
        weakref.finalize(self, _remove, self._hooks).atexit = False
        self._end = BackwardEnd(weakref.ref(self))
        self._plan: GradientPlan | None = None
        self._lost: list[GradientPlan] = []  # failed: their memory may still be in use
        self._sparse: list[tuple[Slot, SparseReduction]] = []
        self._order: list[int] = []  # in which gradients arrived before there was a plan
        self._repeats = False  # a gradient came twice in one pass (reentrant checkpointing)
        self._moved: list[Slot] = []  # set aside in this pass
        self._pass_number = 0
        self._in_pass = False
        self._holding = False  # under no_sync()
        self._passes = 0  # of the current group of backward_passes_per_step
        self._syncing = False  # this pass ends with a reduction
        self._open = False  # a reduction is in flight
        self._done = False  # there was a reduction since step() or zero_grad()
        self._local = False  # a pass has accumulated since
        self.add(named)

    # Parameters and hooks

    def add(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """More parameters; those that require no grad are watched until they do."""
        self._frozen += named
        self._hook_new()

    def _hook_new(self) -> None:
        new = [pair for pair in self._frozen if pair[1].requires_grad]
        if not new:
            return
        self._frozen = [pair for pair in self._frozen if not pair[1].requires_grad]
        for name, parameter in new:
            slot = Slot(len(self._slots), name, parameter)
            self._slots.append(slot)
            before, after = _hook_pair(weakref.ref(self), slot)
            self._hooks.append(parameter.register_hook(before))  # type: ignore[no-untyped-call]
            register = parameter.register_post_accumulate_grad_hook
            self._hooks.append(register(after))  # type: ignore[no-untyped-call]
        self._drop_plan()

    def before_gradient(self, slot: Slot) -> None:
        """Hook: a gradient of this parameter is about to be accumulated."""
        if slot.parameter.grad is None:
            slot.clear()
        elif slot.reduced:
            # What was reduced must not be reduced again: only what is added now.
            slot.set_aside()
            self._moved.append(slot)
            self._end.arm()

    def after_gradient(self, slot: Slot) -> None:
        """Hook: p.grad has this parameter's gradient."""
        self._end.arm()
        if not self._in_pass:
            self._begin_pass(cleared=slot.aside is None)
        again = slot.pass_number == self._pass_number
        slot.pass_number = self._pass_number
        slot.save_home()
        plan = self._plan
        if again:
            self._came_twice(slot)
        if plan is None:
            self._order.append(slot.index)
        elif self._syncing and slot.view is not None:
            first = not slot.arrived
            if first or slot.parameter.grad is not slot.view:
                plan.fill(slot)
            if first:
                plan.arrived(slot.bucket)

    def _came_twice(self, slot: Slot) -> None:
        self._repeats = True
        if self._plan is None:
            return
        if self._syncing and slot.arrived and self._plan.next > slot.bucket:
            raise AssertionError(
                f"the gradient of {slot.name!r} came again in one backward pass, after its "
                "reduction was launched (parameters shared between reentrant checkpoints); "
                "use checkpoint(use_reentrant=False)"
            )
        self._plan.early = 0

    def _begin_pass(self, cleared: bool) -> None:
        limit = self.options.backward_passes_per_step
        if self._open:
            raise AssertionError("backward() while gradients are being reduced; call synchronize() first")
        if not self._holding:
            if self._passes == limit and limit > 1 and not cleared:
                raise AssertionError(
                    f"more than backward_passes_per_step={limit} backward passes before step(); "
                    "call step() and zero_grad(), or raise backward_passes_per_step"
                )
            self._passes = self._passes % limit + 1
        self._syncing = not self._holding and self._passes == limit
        self._in_pass = self._local = True
        self._pass_number += 1
        self._hook_new()
        if self._plan is not None and self._plan.context is not _context.current:
            self._plan = None  # of an earlier life of the library

    # The listener of BackwardEnd

    def launch(self) -> None:
        """The backward pass has ended: launch what is not under way yet."""
        for slot in self._moved:
            if slot.pass_number != self._pass_number or not self._in_pass:
                slot.put_back()  # autograd.grad asked for the gradient, p.grad is not touched
        self._moved.clear()
        ends, self._in_pass = self._in_pass and self._syncing, False
        if ends:
            self._launch_rest()

    def complete(self) -> None:
        """Wait for the reduction, if one is in flight, and deliver the results."""
        if not self._open:
            return
        plan = self._plan
        assert plan is not None
        try:
            present = plan.wait()
        except RingreduceTimeoutError:
            raise  # still in flight: synchronize() waits on
        except RingreduceError:
            self._lost.append(plan)
            self._open, self._plan = False, None
            raise
        appeared = False
        for at, (bucket, of_bucket) in enumerate(zip(plan.buckets, present, strict=True)):
            pairs = zip(bucket.members, of_bucket, strict=True)
            converted = [slot for i, anywhere in pairs if (slot := self._slots[i]).must_convert(anywhere)]
            if converted:
                plan.convert(at, converted)
            for index, anywhere in zip(bucket.members, of_bucket, strict=True):
                slot = self._slots[index]
                if slot.kind is Kind.UNSEEN:
                    appeared |= anywhere
                else:
                    slot.deliver(anywhere)
        factor = 1.0 / self._size() if self.options.op is ReduceOp.Average else 1.0
        for slot, reduction in self._sparse:
            slot.deliver_sparse(reduction.result(factor))
        self._open = self._local = False
        self._done = True
        if appeared:
            self._drop_plan()
            self.reduce()

    # Reductions

    def reduce(self) -> None:
        """Reduce everything that is local now."""
        self._launch_rest()
        self.complete()

    def finish(self) -> None:
        """Before step(): make up for a reduction that no backward pass has made."""
        self.complete()
        if self._local or not self._done:
            self.reduce()

    def _launch_rest(self) -> None:
        plan = self._plan
        if plan is None or plan.context is not _context.current:
            agreed = _planning.agree(self._slots, self._order, self.options)
            self._order = agreed.order
            plan = self._plan = _planning.build(self._slots, agreed, not self._repeats, self.options)
        self._open = True
        for bucket in plan.buckets:
            for index in bucket.members:
                self._settle(plan, self._slots[index])
        try:
            plan.launch_rest()
        except ValueError:  # a capture that cannot be: nothing of it has run
            self._open = False
            plan.give_up_step()
            for slot in self._slots:
                slot.arrived = False  # gradients that are not cleared count as local again
            raise
        self._sparse = []
        for slot in self._slots:
            if slot.kind is Kind.SPARSE:
                local = slot.parameter.grad if slot.has_local_gradient() else None
                if local is None:
                    slot.aside = slot.parameter.grad
                self._sparse.append((slot, SparseReduction(slot.name, slot.parameter, local, self._set())))

    def _settle(self, plan: GradientPlan, slot: Slot) -> None:
        """Fill the place of a parameter whose gradient did not come in this pass."""
        if slot.arrived:
            return
        if not slot.has_local_gradient():
            if slot.kind is Kind.DENSE:
                slot.fill_absent()
            plan.set_absent(slot.bucket, slot.place)
        elif slot.kind is Kind.DENSE:
            slot.save_home()
            plan.fill(slot)
            plan.arrived(slot.bucket)

    def _drop_plan(self) -> None:
        if self._plan is not None:
            self._plan.close()
        self._plan = None

    def _set(self) -> ProcessSet:
        return self.options.process_set

    def _size(self) -> int:
        return self.options.process_set.size()

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
        """step() was called."""
        self._done = self._local = False
        self._passes = 0

    def cleared(self) -> None:
        """zero_grad() is being called: nothing may be in flight."""
        if self._plan is not None and self._plan.context is not _context.current:
            self._open, self._plan = False, None  # what was in flight has ended with an earlier life of the library
        if self._open or (self._plan is not None and self._plan.next > 0):
            raise AssertionError(
                "zero_grad() while gradients are being reduced; call it before backward() or after step()"
            )
        for slot in self._slots:
            slot.clear()
        if self._plan is not None:
            self._plan.begin_step()
        self._in_pass = False
        self.stepped()


def _hook_pair(reducer: weakref.ref[Reducer], slot: Slot) -> tuple[Any, Any]:
    """The hooks hold the reducer weakly: parameters may outlive their optimizer."""

    def before(_grad: Tensor) -> None:
        alive = reducer()
        if alive is not None:
            alive.before_gradient(slot)

    def after(_parameter: Tensor) -> None:
        alive = reducer()
        if alive is not None:
            alive.after_gradient(slot)

    return before, after


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
