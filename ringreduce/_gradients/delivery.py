"""A slot's gradient on its way into the bucket, and out of it.

    local gradient ──place──► view in the bucket ──reduction──► deliver ──► p.grad, an alias
    a delivered p.grad, not cleared: set aside ──────────────────── added ────┘

Nothing here waits, or knows of other slots.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ringreduce._gradients.holders import Watched
from ringreduce._gradients.slot import Slot, same_memory


def place_in_view(slot: Slot, hand_out: bool) -> None:
    """Bring p.grad into the view. With `hand_out` it lies there from then on."""
    view, grad = slot.view, slot.gradient()
    assert view is not None
    assert grad is not None
    if not same_memory(grad, view):
        keep_aside(slot)
        view.copy_(grad.to_dense() if grad.is_sparse else grad)
        if hand_out and not (slot.parameter.grad is not None and slot.parameter.grad.requires_grad):
            slot.parameter.grad = view.detach()
    slot.placed = True


def place_nothing(slot: Slot) -> None:
    """This rank has no gradient: zeros. A delivered p.grad is set aside."""
    slot.aside = slot.parameter.grad
    slot.parameter.grad = None
    if slot.view is not None:
        keep_aside(slot)
        slot.view.zero_()


def keep_aside(slot: Slot) -> None:
    """The view is about to be overwritten: if what was set aside is there, keep a copy of it."""
    if slot.aside is not None and slot.view is not None and same_memory(slot.aside, slot.view):
        slot.saved = slot.view.clone()


def unplace(slot: Slot) -> None:
    """The plan is given up before anything of this step was reduced: as before `place_...`."""
    if slot.saved is not None:
        if slot.placed:
            slot.aside = slot.saved
        elif slot.aside is not None:
            slot.aside.copy_(slot.saved)
            slot.version = slot.aside._version if slot.version >= 0 else -1
    if slot.placed:
        slot.handed = None  # its memory has the local gradient
    if not slot.placed and slot.parameter.grad is None:
        slot.parameter.grad, slot.aside = slot.aside, None
    slot.saved = None
    slot.placed = False


def home_memory(slot: Slot, allocate: Callable[[Tensor], Tensor]) -> Tensor:
    """Memory of the slot's own for a result: the last one's, unless somebody holds it."""
    home = slot.home
    if home is None or slot.aside is not None or home.is_held(*slot.keeps()):
        home = slot.home = Watched(allocate(slot.parameter.detach()))
    return home.tensor


def deliver(slot: Slot, result: Tensor | None) -> None:
    """`result` is the same on all ranks: it becomes p.grad, or is added to what was set aside.

    None: no rank had a gradient. The memory of `result` is the slot's, and an alias is handed out.
    """
    late = slot.parameter.grad if slot.late else None
    if slot.alone and result is not None and _is_like(slot, result):
        slot.delivered = True  # the same numbers
    elif result is None:
        if slot.aside is not None:
            if slot.saved is not None:  # the view had to be zeroed
                slot.aside.copy_(slot.saved)
                slot.version = slot.aside._version if slot.version >= 0 else -1
            slot.parameter.grad = slot.aside
    else:
        slot.parameter.grad, slot.handed = _added(slot, result)
        slot.delivered = True
    slot.settle()
    if late is not None:  # a reduction of its own is to come
        slot.aside, slot.parameter.grad = slot.parameter.grad, late
        slot.local, slot.delivered = True, False


def _is_like(slot: Slot, result: Tensor) -> bool:
    """Whether p.grad may stay where a result has the same numbers."""
    grad = slot.parameter.grad
    return grad is not None and grad.layout is result.layout


def _added(slot: Slot, result: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient to hand out, and its memory for `handed`."""
    aside = slot.aside
    if aside is None:
        return (slot.parameter.grad if slot.in_view() else result.detach()), result  # type: ignore[return-value]
    if slot.saved is not None:  # `aside` is the memory of `result`: its holders see the sum, as in plain torch
        result.add_(slot.saved)
        return aside, result
    aside = aside.to(result.dtype)  # the parameter may have been converted since
    if aside.is_sparse:
        aside = aside + result if result.is_sparse else result.add(aside)
    else:
        aside.add_(result)
    return aside, aside.detach()


def drop(slot: Slot) -> None:
    """A pass has failed: what was not reduced is gone, what was delivered before it stays."""
    if slot.saved is not None:  # other ranks may still write into the view
        slot.aside = slot.handed = slot.saved
        slot.version = slot.saved._version if slot.version >= 0 else -1
    if slot.local:
        slot.delivered = slot.was_delivered
    if slot.local or slot.placed or slot.moved or slot.aside is not None:
        slot.parameter.grad = slot.aside
    slot.settle()
