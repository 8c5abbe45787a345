"""The two hooks on each parameter: before its gradient is accumulated, and when p.grad has it.

They hold the reducer weakly, as parameters may outlive their optimizer, and are small, as there may be many.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from ringreduce._gradients.compiled import is_compiling, untraced
from ringreduce._gradients.slot import Slot

Handles = tuple[Any, Any]


class Hooked(Protocol):
    """Who is called."""

    def before_gradient(self, slot: Slot, gradient: Tensor) -> None:
        """`gradient` is about to be accumulated."""

    def after_gradient(self, slot: Slot) -> None:
        """p.grad has it."""


class _Hook:
    __slots__ = ("_hooked", "_slot")

    def __init__(self, hooked: weakref.ref[Any], slot: Slot) -> None:
        self._hooked, self._slot = hooked, slot

    def __call__(self, tensor: Tensor) -> None:
        if is_compiling():
            untraced(partial(self._run, tensor))
        else:
            self._run(tensor)

    def _run(self, tensor: Tensor) -> None:
        raise NotImplementedError


class _Before(_Hook):
    __slots__ = ()

    def _run(self, tensor: Tensor) -> None:
        hooked = self._hooked()
        if hooked is not None:
            hooked.before_gradient(self._slot, tensor)


class _After(_Hook):
    __slots__ = ()

    def _run(self, tensor: Tensor) -> None:
        hooked = self._hooked()
        if hooked is not None:
            hooked.after_gradient(self._slot)


def hook(hooked: weakref.ref[Any], slot: Slot) -> Handles:
    """Put the hooks on the slot's parameter."""
    parameter = slot.parameter
    before = parameter.register_hook(_Before(hooked, slot))  # type: ignore[no-untyped-call]
    after = parameter.register_post_accumulate_grad_hook(_After(hooked, slot))  # type: ignore[no-untyped-call]
    return before, after


def is_hooked(slot: Slot, handles: Handles) -> bool:
    """Whether they are there: torch.utils.swap_tensors() takes hooks away with a parameter's old content."""
    return handles[1].id in (slot.parameter._post_accumulate_grad_hooks or ())


def remove(handles: Iterable[Handles]) -> None:
    """Take the hooks away."""
    for pair in handles:
        for handle in pair:
            handle.remove()
