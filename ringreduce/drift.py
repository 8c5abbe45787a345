"""Whether all ranks hold the same, asked at once and in full: `check`.

The drift guard of a DistributedOptimizer asks the same of its parameters all the time, bit by bit
(`_gradients.drift`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ringreduce._gradients.drift_compare import compare
from ringreduce._gradients.drift_digests import CpuDigests
from ringreduce._gradients.drift_windows import Named, watched, whole
from ringreduce._ops import agreement
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce.errors import DriftError
from ringreduce.objects import allgather_object

_SHOWN = 5
_PLAIN = (bool, int, float, complex, str, type(None))


class _Held(NamedTuple):
    """Something that a rank holds, and what kind of thing it is in a message."""

    label: str
    value: Any  # a tensor, or a plain value


def check(
    model: nn.Module | Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Compare what all ranks hold; returns if it is the same, to the bit. Collective over the process set.

    Args:
        model: a module, of which parameters and buffers are compared, or a state_dict. Buffers of batch
            normalisation that is not synchronised differ rightly: pass `dict(model.named_parameters())` then.
        optimizer: its state and the options of its param_groups are compared.
        process_set: the ranks that take part.

    Raises DriftError, with the same text on all ranks, that says what differs, where and by how much, and
    RingreduceError if the ranks do not even hold things of the same names, shapes and dtypes. Differences of the
    size of rounding are a warning. TypeError for anything that is not a model, a state_dict or an optimizer.
    """
    held = [*_of_model(model), *_of_optimizer(optimizer, model)]
    shapes = [(one.label, _shape(one.value)) for one in held]
    facts = [(one.label, repr(one.value)) for one in held if not isinstance(one.value, Tensor)]
    tensors = watched([(one.label, one.value) for one in held if isinstance(one.value, Tensor)])
    mine = (agreement.digest(shapes), facts, [_digest(tensor) for _, tensor in tensors])
    everyone = allgather_object(mine, "ringreduce.check", process_set)
    structures, all_facts, digests = zip(*everyone, strict=True)
    if len(set(structures)) > 1:
        agreement.raise_difference("check: the ranks hold different things", shapes, process_set)
    said = []
    if any(of_rank != facts for of_rank in all_facts):
        said.append(agreement.difference(dict(zip(process_set.registered_ranks(), all_facts, strict=True))))
    differences = compare(tensors, digests, process_set, enough=_SHOWN + 1)
    real = [str(difference) for difference in differences if not difference.rounding]
    said += real[:_SHOWN] + ["and more"] * (len(real) > _SHOWN)
    if said:
        raise DriftError("check: the ranks differ: " + "; ".join(said) + " (see docs/debugging.md, 'A drift')")
    if differences and process_set.rank() == 0:
        text = "; ".join(map(str, differences[:_SHOWN]))
        warnings.warn(f"ringreduce: check: the ranks differ by no more than rounding: {text}", stacklevel=2)


def _of_model(model: Any) -> Iterator[_Held]:
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters():
            yield _Held(name, parameter)
            yield _Held(f"requires_grad of {name}", parameter.requires_grad)
        yield from (_Held(f"buffer {name}", buffer) for name, buffer in model.named_buffers())
    elif isinstance(model, Mapping):
        yield from _flat("", dict(model))
    elif model is not None:
        raise TypeError(f"model: expected a torch.nn.Module or a state_dict, got {type(model).__name__}")


def _of_optimizer(optimizer: Any, model: Any) -> Iterator[_Held]:
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    named = model.named_parameters() if isinstance(model, nn.Module) else ()
    names = {id(parameter): name for name, parameter in named}
    for at, group in enumerate(optimizer.param_groups):
        yield from _flat(f"param_groups[{at}]", {key: value for key, value in group.items() if key != "params"})
        for place, parameter in enumerate(group["params"]):
            name = f"param_groups[{at}]['params'][{place}]"
            if id(parameter) not in names:
                yield _Held(name, parameter)
            yield from _flat(f"state of {names.get(id(parameter), name)}", optimizer.state.get(parameter, {}))


def _flat(label: str, tree: Any) -> Iterator[_Held]:
    """The tensors and plain values in dicts, lists and tuples. Of other objects only the type is compared."""
    if isinstance(tree, Mapping):
        for key in sorted(tree, key=str):
            yield from _flat(f"{label}[{key!r}]" if label else str(key), tree[key])
    elif isinstance(tree, (list, tuple)):
        yield _Held(f"length of {label}", len(tree))
        for at, value in enumerate(tree):
            yield from _flat(f"{label}[{at}]", value)
    elif isinstance(tree, (Tensor, *_PLAIN)):
        yield _Held(label, tree)
    else:
        yield _Held(f"type of {label}", type(tree).__qualname__)


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return "a value"
    return "not initialized" if torch.nn.parameter.is_lazy(value) else f"{tuple(value.shape)} {value.dtype}"


def _digest(tensor: Tensor) -> int:
    flat: list[Named] = [("", tensor.detach().cpu().contiguous())]
    digests = CpuDigests()
    return digests.number(digests.take(0, (0, 0), whole(flat)))
