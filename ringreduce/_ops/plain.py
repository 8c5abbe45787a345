"""The short way: one call of the core for an operation of a plain tensor, from the numbers to the result.

The core refuses what needs a check, a copy or an explanation, and so does this module: the caller then takes the long
way (`submit`). Results that are to be made are made here for little data only: there it is the calls that count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringreduce import _core
from ringreduce._ops.compiled import untraced
from ringreduce._ops.submit import received
from ringreduce._ops.versions import increment_version
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet


def _call(
    kind: str, tensor: Any, output: Tensor | None, name: str | None, process_set: ProcessSet,
    op: Any, prescale: Any, postscale: Any, root: Any,
) -> _core.Op | bool | None:  # fmt: skip
    """None: refused. True: done. Else the operation, done, with a result of another size than the output."""
    engine = process_set.engine
    if engine is None or forward_ad._current_level >= 0:
        return None
    if name is not None and running.require().names:  # a handle that lives may have it
        return None
    return engine.call_plain(
        process_set.process_set_id or 0, kind, name, tensor, output, op, prescale, postscale, root
    )  # fmt: skip


def _is_small(tensor: Any) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and tensor.nbytes <= _core.SMALL_BYTES


@untraced
def in_place(
    kind: str, tensor: Any, name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0, root: Any = None,
) -> bool:  # fmt: skip
    """Whether it was done: the tensor has the result."""
    if _call(kind, tensor, tensor, name, process_set, op, prescale, postscale, root) is None:
        return False
    increment_version((tensor,))
    return True


@untraced
def like(
    kind: str, tensor: Any, name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0, root: Any = None,
    make: Callable[[Tensor], Tensor] = torch.empty_like,
) -> Tensor | None:  # fmt: skip
    """The result, which is as large as the tensor; None if it was refused."""
    if not _is_small(tensor):
        return None
    output = make(tensor)
    if _call(kind, tensor, output, name, process_set, op, prescale, postscale, root) is None:
        return None
    return output


@untraced
def rows(
    kind: str, tensor: Any, expected: Callable[[int, Sequence[int]], int], name: str | None, process_set: ProcessSet,
    op: Any = None, prescale: Any = 1.0, postscale: Any = 1.0, root: Any = None,
) -> Tensor | None:  # fmt: skip
    """The result's rows; None if it was refused. `expected`: how many, of the tensor's number and the set's ranks."""
    ranks = process_set.ranks
    if process_set.engine is None or ranks is None or not _is_small(tensor) or not tensor.ndim:
        return None
    shape = tensor.shape
    output = tensor.new_empty((expected(shape[0], ranks), *shape[1:]))
    done = _call(kind, tensor, output, name, process_set, op, prescale, postscale, root)
    if done is None or done is True:
        return output if done else None
    assert isinstance(done, _core.Op)
    width = tensor.numel() // shape[0]
    return received(done, tensor, (sum(done.counts()) // width, *shape[1:]))


@untraced
def barrier(process_set: ProcessSet) -> bool:
    """Whether all have met."""
    return _call("barrier", None, None, None, process_set, None, 1.0, 1.0, None) is not None
