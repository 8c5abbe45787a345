"""The two hooks on each parameter: before its gradient is accumulated, and when p.grad has it.

They hold whom they call weakly, as parameters may outlive their optimizer, and are small, as there may be many.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from ringreduce._gradients.slot import Slot
from ringreduce._ops.compiled import untraced

Handles = tuple[Any, Any]

_will_execute = getattr(torch._C, "_will_engine_execute_node", None)  # None in an old torch: then nobody can tell


class Hooked(Protocol):
    """Who is called."""

    def before_gradient(self, slot: Slot, gradient: Tensor) -> None:
        """`gradient` is about to be accumulated."""

    def after_gradient(self, slot: Slot, parameter: Tensor) -> None:
        """p.grad has it."""


class _Hook:
    __slots__ = ("_hooked", "_slot", "_what")

    def __init__(self, hooked: weakref.ref[Any], what: Callable[[Any, Slot, Tensor], None], slot: Slot) -> None:
        self._hooked, self._what, self._slot = hooked, what, slot

    def __call__(self, tensor: Tensor) -> None:
        _run(self, tensor)


@untraced
def _run(hook: _Hook, tensor: Tensor) -> None:
    hooked = hook._hooked()
    if hooked is not None:
        hook._what(hooked, hook._slot, tensor)


def hook(hooked: weakref.ref[Any], kind: type[Hooked], slot: Slot) -> Handles:
    """Put the hooks on the slot's parameter; they call methods of the class `kind`."""
    before, after = _Hook(hooked, kind.before_gradient, slot), _Hook(hooked, kind.after_gradient, slot)
    register: Any = slot.parameter
    return register.register_hook(before), register.register_post_accumulate_grad_hook(after)


def is_in_graph(slot: Slot) -> bool:
    """Whether the backward pass that goes on in this thread will bring a gradient."""
    if _will_execute is None or torch._C._current_graph_task_id() == -1 or not slot.parameter.requires_grad:
        return False
    edge = torch.autograd.graph.get_gradient_edge(slot.parameter)
    return bool(_will_execute(edge.node))


def hook_again(slot: Slot) -> None:
    """After torch.utils.swap_tensors(): the parameter still has its lists of hooks, which autograd forgot."""
    parameter: Any = slot.parameter
    slot.content = parameter._cdata
    parameter._backward_hooks = parameter._backward_hooks
    parameter._post_accumulate_grad_hooks = parameter._post_accumulate_grad_hooks


def remove(handles: Iterable[Handles]) -> None:
    """Take the hooks away."""
    for pair in handles:
        for handle in pair:
            handle.remove()
