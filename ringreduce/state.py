"""Starting all ranks from the same parameters and the same optimizer state.

Only values move: no optimizer step is run to create state, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringreduce._ops import agreement, check, gpus, memory, submit
from ringreduce._ops.together import raise_together
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce.objects import broadcast_object


def broadcast_parameters(
    params: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    root_rank: int = 0,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Overwrite the parameters on all ranks with those of the root.

    Args:
        params: a state_dict, its items(), or a list of (name, tensor), as
            `list(model.named_parameters())`; the same names, shapes and dtypes on all ranks. Any
            dense tensor of any dtype; one that repeats its memory (`expand`) does so on all ranks.
        root_rank: global rank whose values count, the same on all ranks.

    Raises, before anything is overwritten: ValueError for anything else, such as a generator (it can
    be read only once) or a sparse tensor, if all ranks make that mistake; RingreduceError on every
    rank if only some do, or if the ranks' parameters differ, with the names and what differs.
    """
    process_set.usable_engine()
    process_set.set_rank("root_rank", root_rank)
    descriptions = [("root_rank", str(root_rank))]
    targets: list[tuple[str, Tensor]] = []
    problem = None
    try:
        for name, tensor in memory.named_tensors(params):
            check.op_name(name)
            targets.append((f"parameter.{len(targets)}.{name}", memory.target(f"params: {name!r}", tensor)))
            descriptions.append((name, memory.described(tensor)))
    except Exception as error:
        problem = error
    agreement.require_same("broadcast_parameters", descriptions, problem, process_set)
    _broadcast_all(targets, root_rank, process_set)


def _broadcast_all(targets: Sequence[tuple[str, Tensor]], root_rank: int, process_set: ProcessSet) -> None:
    with torch.no_grad():
        handles = [submit.broadcast(tensor, root_rank, True, name, process_set) for name, tensor in targets]
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

    Raises ValueError for LBFGS, whose state belongs to one sequence of function values;
    RingreduceError on every rank if the state cannot be taken or loaded on one.
    """
    process_set.usable_engine()
    is_root = process_set.set_rank("root_rank", root_rank) == process_set.rank()
    what, label = "broadcast_optimizer_state", "ringreduce.optimizer_state"
    tensors: list[Tensor] = []
    state = problem = None
    try:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("optimizer: the state of LBFGS cannot be broadcast")
        if is_root:
            state = _take_tensors(optimizer.state_dict(), tensors)
    except Exception as error:
        problem = error
    raise_together(what, problem, f"{label}.taken", process_set)
    state = broadcast_object(state, root_rank, label, process_set)
    targets = []
    try:
        if not is_root:
            state = _make_tensors(state, tensors)
        targets = [(f"optimizer.{i}", memory.target("optimizer", tensor)) for i, tensor in enumerate(tensors)]
    except Exception as error:
        problem = error
    raise_together(what, problem, f"{label}.made", process_set)
    _broadcast_all(targets, root_rank, process_set)
    try:
        if not is_root:
            optimizer.load_state_dict(state)
    except Exception as error:
        problem = error
    raise_together(what, problem, f"{label}.loaded", process_set)


def _take_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """`tree` with each tensor moved to `tensors` and a description in its place."""
    if isinstance(tree, Tensor):
        memory.target("optimizer: a tensor of its state", tree)
        tensors.append(tree)
        return _TensorLike(tuple(tree.shape), tree.dtype, gpus.backend.holds(tree))
    return _rebuilt(tree, lambda leaf: _take_tensors(leaf, tensors))


def _make_tensors(tree: Any, tensors: list[Tensor]) -> Any:
    """The reverse: an empty tensor for each description, listed in the same order."""
    if isinstance(tree, _TensorLike):
        if tree.on_gpu:
            tensors.append(gpus.backend.empty(tree.shape, tree.dtype))
        else:
            tensors.append(torch.empty(tree.shape, dtype=tree.dtype, device="cpu"))
        return tensors[-1]
    return _rebuilt(tree, lambda leaf: _make_tensors(leaf, tensors))


def _rebuilt(tree: Any, convert: Any) -> Any:
    if type(tree) is dict:
        return {key: convert(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(convert(value) for value in tree)
    return tree
