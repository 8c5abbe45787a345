"""The short way: one call of the core for an operation of a plain tensor, from the numbers to the result.

The core refuses what needs a check, a copy, a derivative or an explanation, and so does this module, and whatever is
called under torch.compile: the caller then takes the long way (`submit`, `autograd`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringreduce._ops.compiled import is_traced, looker
from ringreduce._ops.versions import increment_version
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet


def _call(
    kind: str, tensor: Any, output: Any, name: str | None, process_set: ProcessSet,
    op: Any, prescale: Any, postscale: Any, root: Any,
) -> Any:  # fmt: skip
    """As the core's `call_plain`."""
    engine, context = process_set.engine, running.current
    if is_traced() or looker() is not None or engine is None or context is None or forward_ad._current_level >= 0:
        return None
    if name is not None and context.names:  # a handle that lives may have it
        return None
    return engine.call_plain(
        process_set.process_set_id or 0, kind, name, tensor, output, op, prescale, postscale, root
    )  # fmt: skip


def _is_plain(tensor: Any) -> bool:
    """Whether it looks so; the core looks closer."""
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_cuda


def in_place(
    kind: str, tensor: Any, name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0, root: Any = None,
) -> bool:  # fmt: skip
    """Whether it was done: the tensor has the result."""
    if _call(kind, tensor, tensor, name, process_set, op, prescale, postscale, root) is None:
        return False
    if kind != "reduce" or root == running.require().rank:  # elsewhere it is as it was
        increment_version((tensor,))
    return True


def like(
    kind: str, tensor: Any, name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0, root: Any = None,
    make: Callable[[Tensor], Tensor] = torch.empty_like,
) -> Tensor | None:  # fmt: skip
    """The result, as large as the tensor and made by `make`; None if it was refused."""
    if not _is_plain(tensor) or tensor.requires_grad or not tensor.is_contiguous():
        return None
    result: Tensor | None = _call(kind, tensor, make(tensor), name, process_set, op, prescale, postscale, root)
    return result


def rows(
    kind: str, tensor: Any, name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0,
) -> Tensor | None:  # fmt: skip
    """The result's rows; None if it was refused."""
    result: Tensor | None = _call(kind, tensor, process_set._place, name, process_set, op, prescale, postscale, None)
    return result


def barrier(process_set: ProcessSet) -> bool:
    """Whether all have met."""
    return _call("barrier", None, None, None, process_set, None, 1.0, 1.0, None) is not None
