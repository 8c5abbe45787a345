"""The two hooks on each parameter: before its gradient is accumulated, and when p.grad has it.

They hold the reducer weakly, as parameters may outlive their optimizer, and are small, as there may be many.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
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

    def after_gradient(self, slot: Slot) -> None:
        """p.grad has it."""


class _Hook:
    __slots__ = ("_hooked", "_slot")

    def __init__(self, hooked: weakref.ref[Any], slot: Slot) -> None:
        self._hooked, self._slot = hooked, slot

    def __call__(self, tensor: Tensor) -> None:
        _run(self, tensor)

    def _run(self, tensor: Tensor) -> None:
        raise NotImplementedError


@untraced
def _run(hook: _Hook, tensor: Tensor) -> None:
    hook._run(tensor)


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
