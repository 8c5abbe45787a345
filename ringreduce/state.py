"""Starting all ranks from the same parameters and the same optimizer state.

Only values move: no optimizer step is run to create state, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringreduce import _context, _gpu, _submit
from ringreduce.objects import broadcast_object
from ringreduce.process_set import ProcessSet, global_process_set


def broadcast_parameters(
    params: Mapping[str, Tensor] | Sequence[tuple[str, Tensor]],
    root_rank: int = 0,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Overwrite the parameters on all ranks with those of the root.

    Args:
        params: a state_dict, or a list of (name, tensor), as `list(model.named_parameters())`;
            the same names, shapes and dtypes on all ranks.
        root_rank: global rank whose values count.

    Raises ValueError for anything else, a generator for one (it can be read only once).
    """
    if isinstance(params, Mapping):
        items = sorted(params.items())
    elif isinstance(params, (list, tuple)):
        items = [p for p in params if isinstance(p, tuple) and len(p) == 2]
        if len(items) != len(params):
            raise ValueError("params: expected a list of (name, tensor) pairs")
    else:
        raise ValueError(f"params: expected a state_dict or a list of (name, tensor), got {type(params).__name__}")
    _broadcast_all([(n, t) for n, t in items if t is not None], root_rank, process_set)


def _broadcast_all(items: Sequence[tuple[str, Tensor]], root_rank: int, process_set: ProcessSet) -> None:
    for name, tensor in items:
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"params: {name!r} is a {type(tensor).__name__}, expected a tensor "
                "(broadcast_object sends other objects)"
            )
    with torch.no_grad():
        handles = [
            _submit.broadcast(tensor, root_rank, True, f"parameter.{name}", process_set) for name, tensor in items
        ]
        for handle in handles:
            handle.wait()


class _TensorLike(NamedTuple):
    """In a broadcast state: the place of a tensor that is sent on its own."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_gpu: bool


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer,
    root_rank: int = 0,
    model: torch.nn.Module | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Give the optimizer of every rank the root's state and options.

    State that is missing on a rank is created with the root's values. Options keep their
    types. The root's optimizer is left as it is; on the others `optimizer.load_state_dict` runs.

    Args:
        optimizer: any but LBFGS; the same parameters in the same order on all ranks.
        root_rank: global rank whose state counts.
        model: accepted for programs written for Horovod, and not needed.

    Raises ValueError for LBFGS, whose state belongs to one sequence of function values.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer: the state of LBFGS cannot be broadcast")
    is_root = _context.require().rank == root_rank
    tensors: list[Tensor] = []
    state = _take_tensors(optimizer.state_dict(), tensors) if is_root else None
    state = broadcast_object(state, root_rank, "ringreduce.optimizer_state", process_set)
    if not is_root:
        state = _make_tensors(state, tensors)
    items = [(f"optimizer.{index}", tensor) for index, tensor in enumerate(tensors)]
    _broadcast_all(items, root_rank, process_set)
    if not is_root:
        optimizer.load_state_dict(state)


def _take_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """`tree` with each tensor moved to `tensors` and a description in its place."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return _TensorLike(tuple(tree.shape), tree.dtype, _gpu.backend.holds(tree))
    return _rebuilt(tree, lambda leaf: _take_tensors(leaf, tensors))


def _make_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """The reverse: an empty tensor for each description, listed in the same order."""
    if isinstance(tree, _TensorLike):
        empty = _gpu.backend.empty if tree.on_gpu else torch.empty
        tensors.append(empty(tree.shape, dtype=tree.dtype))
        return tensors[-1]
    return _rebuilt(tree, lambda leaf: _make_tensors(leaf, tensors))


def _rebuilt(tree: Any, convert: Any) -> Any:
    if type(tree) is dict:
        return {key: convert(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(convert(value) for value in tree)
    return tree
