"""What a program has done to gradients, seen by samples and counts of changes: it must not spoil a reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from ringreduce import _core
from ringreduce._gradients.slot import Slot, layout_of, same_memory
from ringreduce.errors import RingreduceError

_SAMPLED = 64  # values


def _sample(gradient: Tensor) -> int:
    """Changes with whatever scales a gradient: a digest of some of its values; on a GPU the count of changes."""
    if gradient.device.type != "cpu":
        return gradient._version
    values = gradient._values() if gradient.is_sparse else gradient
    step = max(1, values.numel() // _SAMPLED)
    sample = values.flatten()[::step].contiguous()
    return _core.digest([(sample.data_ptr(), sample.nbytes)])[0]


def _was_only_converted(gradient: Tensor, before: Tensor) -> bool:
    """Whether it has the same values, as far as its dtype, or one that it went through, can hold them."""
    if gradient.shape != before.shape:
        return False
    gradient, before = (t.to_dense() if t.is_sparse else t for t in (gradient, before))
    ways = (gradient.dtype, torch.float32, torch.bfloat16, torch.float16)
    return any(torch.allclose(gradient, before.to(way).to(gradient), rtol=0, atol=0, equal_nan=True) for way in ways)


def note(slot: Slot) -> None:
    """At the end of a pass that only accumulates: what is done to a local p.grad from now on is seen."""
    grad = slot.gradient()
    slot.noted = (grad.detach(), _sample(grad)) if slot.local and grad is not None else None


def was_edited(slot: Slot) -> bool:
    """Whether a local p.grad was changed in place since then, or replaced while a part of it is set aside.

    In other memory with the same values it was converted with its parameter.
    """
    noted, grad = slot.noted, slot.parameter.grad
    if noted is None or grad is None:
        return False
    if same_memory(grad, noted[0]):
        edited = _sample(grad) != noted[1]
    else:
        edited = slot.aside is not None and (_sample(noted[0]) != noted[1] or not _was_only_converted(grad, noted[0]))
    if edited:
        slot.noted = None
    return edited


def was_rewritten(slot: Slot) -> bool:
    """Whether the memory of a delivered gradient was written to after the step that used it.

    Nobody can tell whether that is local. Zeros are: the gradient was cleared.
    """
    grad = slot.parameter.grad
    if grad is None or slot.delivered or slot.handed is None or slot.version < 0 or slot.local or slot.placed:
        return False
    if grad._version == slot.version or not same_memory(grad, slot.handed):
        return False
    slot.handed, slot.version = None, -1
    return bool((grad._values() if grad.is_sparse else grad).count_nonzero() > 0)


def was_converted(slot: Slot) -> bool:
    """Whether the model was converted, and with it a p.grad that the last step has used."""
    kept = slot.version >= 0 and slot.parameter.grad is not None and not slot.delivered and not slot.local
    return kept and slot.layout != layout_of(slot.parameter)


def watch(slot: Slot, gradient: Tensor | None) -> None:
    """From now on hooks of the program are not to edit the gradient: they would see only a part of p.grad."""
    slot.watched = None
    if slot.aside is not None and gradient is not None and len(slot.parameter._post_accumulate_grad_hooks or ()) > 1:
        slot.watched = _sample(gradient)


def check_hooks(slot: Slot) -> None:
    """RingreduceError if one has."""
    if slot.watched is None:
        return
    watched, slot.watched = slot.watched, None
    grad = slot.gradient()
    if grad is None or _sample(grad) != watched:
        raise RingreduceError(
            f"a post-accumulate hook of {slot.name!r} has changed p.grad, of which it sees only what this backward "
            "pass adds to the gradient that the last one has left reduced: clear gradients between the passes, or "
            "run all but the last one within optimizer.no_sync()"
        )
