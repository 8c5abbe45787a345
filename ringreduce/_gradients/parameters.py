"""The parameters of one optimizer: their slots and hooks, and how they come and go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ringreduce._gradients import hooks
from ringreduce._gradients.options import Named
from ringreduce._gradients.slot import Slot


class Parameters:
    """Those that require grad have a slot, and hooks; the others are watched until they do.

    Args:
        hooked: whom the hooks call, for as long as it lives.
    """

    def __init__(self, hooked: Any) -> None:
        self._hooked, self._kind = weakref.ref(hooked), type(hooked)
        self.slots: list[Slot] = []  # in registration order
        self.alone = False  # this rank is the only one
        self._frozen: list[Named] = []
        self._handles: dict[int, hooks.Handles] = {}  # of each slot
        weakref.finalize(hooked, hooks.remove, self._handles.values()).atexit = False

    def add(self, named: Sequence[Named]) -> None:
        """More parameters; `update` gives them slots."""
        self._frozen += named

    def update(self) -> list[str]:
        """Give slots to those that require grad now; returns their names."""
        new = [pair for pair in self._frozen if pair[1].requires_grad]
        if not new:
            return []
        self._frozen = [pair for pair in self._frozen if not pair[1].requires_grad]
        collecting = gc.isenabled()
        gc.disable()  # many objects, and no garbage: looking for that takes longer than all the rest
        for name, parameter in new:
            slot = Slot(len(self.slots), name, parameter)
            slot.alone = self.alone
            self.slots.append(slot)
            self._handles[slot.index] = hooks.hook(self._hooked, self._kind, slot)
        if collecting:
            gc.enable()
        return [name for name, _ in new]

    def keep_only(self, parameters: Sequence[Tensor]) -> list[str]:
        """Forget those that are not among `parameters`; returns the names of those that had slots."""
        kept = {id(parameter) for parameter in parameters}
        self._frozen = [pair for pair in self._frozen if id(pair[1]) in kept]
        gone = [slot for slot in self.slots if id(slot.parameter) not in kept]
        if gone:
            hooks.remove(self._handles[slot.index] for slot in gone)
            left = [(slot, self._handles[slot.index]) for slot in self.slots if id(slot.parameter) in kept]
            self._handles.clear()
            self.slots[:] = [slot for slot, _ in left]
            for index, (slot, handles) in enumerate(left):
                slot.index, self._handles[index] = index, handles
        return [slot.name for slot in gone]

    def set_alone(self, alone: bool) -> None:
        """Whether this rank is the only one, in this life of the library."""
        self.alone = alone
        for slot in self.slots:
            slot.alone = alone

    def hook_again(self) -> None:
        """Where torch.utils.swap_tensors() has taken a parameter's hooks away."""
        for slot in self.slots:
            if slot.was_swapped():
                hooks.hook_again(slot)

    def unhook(self) -> None:
        """Take all hooks away."""
        hooks.remove(self._handles.values())
