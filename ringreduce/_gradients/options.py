"""The options of DistributedOptimizer, and the checks of its arguments that need no running library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ringreduce._ops import check
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.compression import Compressor
from ringreduce.reduction import ReduceOp

Named = tuple[str, Tensor]
AllParameters = Callable[[], Sequence[Named]]  # of an optimizer, whenever it is asked: frozen and new ones too


@dataclass(frozen=True)
class Options:
    """What DistributedOptimizer was asked for, checked."""

    compression: type[Compressor]
    backward_passes_per_step: int
    op: ReduceOp
    gradient_predivide_factor: float
    num_groups: int
    sparse_as_dense: bool
    process_set: ProcessSet

    def described(self) -> str:
        """What all ranks must agree on."""
        return (
            f"op={self.op.name} backward_passes_per_step={self.backward_passes_per_step} "
            f"gradient_predivide_factor={self.gradient_predivide_factor} "
            f"compression={self.compression.__name__} sparse_as_dense={self.sparse_as_dense}"
        )


def named_parameters_of(optimizer: torch.optim.Optimizer, named_parameters: Iterable[Named] | None) -> list[Named]:
    """The optimizer's parameters with unique names, in the order of its groups.

    Raises ValueError for items that are no (name, tensor) pairs, duplicate names, and
    parameters without a name.
    """
    if named_parameters is None:
        return [
            (f"group{g}.{i}", parameter)
            for g, group in enumerate(optimizer.param_groups)
            for i, parameter in enumerate(group["params"])
        ]
    pairs = list(named_parameters)
    if any(not isinstance(p, tuple) or len(p) != 2 or not isinstance(p[0], str) for p in pairs):
        raise ValueError("named_parameters: expected (name, tensor) pairs, as from model.named_parameters()")
    duplicates = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    if duplicates:
        raise ValueError(f"named_parameters: names must be unique, got twice: {duplicates}")
    name_of = {id(parameter): name for name, parameter in pairs}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    unnamed = [tuple(p.shape) for p in parameters if id(p) not in name_of]
    if unnamed:
        raise ValueError(
            f"named_parameters: {len(unnamed)} parameter(s) of the optimizer have no name; their shapes: {unnamed[:5]}"
        )
    return [(name_of[id(parameter)], parameter) for parameter in parameters]


def check_groups(num_groups: Any, groups: Any, parameters: Sequence[Tensor]) -> int:
    """The number of buckets to aim at, 0 for the default; ValueError for a bad argument."""
    for argument, value in (("num_groups", num_groups), ("groups", groups)):
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{argument}: expected a number >= 0, got {value}")
    if not isinstance(num_groups, int):
        raise ValueError(f"num_groups: expected an int, got {num_groups!r}")
    if groups is None or isinstance(groups, int):
        return int(groups or num_groups)
    if not isinstance(groups, (list, tuple)) or not all(
        isinstance(group, (list, tuple)) and all(isinstance(p, Tensor) for p in group) for group in groups
    ):
        raise ValueError("groups: expected an int or a list of lists of parameters")
    seen: set[int] = set()
    known = {id(parameter) for parameter in parameters}
    for parameter in (p for group in groups for p in group):
        if id(parameter) not in known:
            raise ValueError("groups: got a parameter that the optimizer does not have")
        if id(parameter) in seen:
            raise ValueError("groups: a parameter may be in one group only")
        seen.add(id(parameter))
    return len(groups)


def check_passes(passes: Any) -> int:
    """backward_passes_per_step."""
    passes = check.index("backward_passes_per_step", passes)
    if passes < 1:
        raise ValueError(f"backward_passes_per_step: expected 1 or more, got {passes}")
    return int(passes)


def check_reduction(op: Any, predivide_factor: float) -> ReduceOp:
    """The operation, and the factor that goes with Average only."""
    if op not in (ReduceOp.Average, ReduceOp.Sum):
        raise ValueError(f"op: got {op!r}; allowed: Average, Sum")
    if not predivide_factor > 0:
        raise ValueError(f"gradient_predivide_factor: expected > 0, got {predivide_factor}")
    if predivide_factor != 1.0 and op != ReduceOp.Average:
        raise ValueError("gradient_predivide_factor: works with op=Average only")
    return ReduceOp(op)
