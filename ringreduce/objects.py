"""Python objects between ranks, pickled: as everywhere with pickle, among ranks that trust each other."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from ringreduce import _submit
from ringreduce.process_set import ProcessSet, global_process_set


def _to_bytes(obj: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)


def _from_bytes(data: Tensor) -> Any:
    return pickle.load(io.BytesIO(data.numpy().tobytes()))


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """The root's object on every rank: a copy, but on the root `obj` itself.

    Args:
        obj: anything that can be pickled; ignored on the other ranks.
        root_rank: global rank of the root.
    """
    process_set.usable_engine()  # a rank that cannot take part says why
    label = name or "ringreduce.broadcast_object"
    is_root = process_set.set_rank("root_rank", root_rank) == process_set.rank()
    data = _to_bytes(obj) if is_root else torch.empty(0, dtype=torch.uint8)
    length = torch.tensor([data.numel()])
    _submit.broadcast(length, root_rank, True, f"{label}.length", process_set, wake=False).wait()
    if not is_root:
        data = torch.empty(int(length), dtype=torch.uint8)
    _submit.broadcast(data, root_rank, True, f"{label}.data", process_set, wake=False).wait()
    return obj if is_root else _from_bytes(data)


def allgather_object(obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set) -> list[Any]:
    """A list of every rank's object, in rank order.

    Args:
        obj: anything that can be pickled.
    """
    label = name or "ringreduce.allgather_object"
    data, lengths = _submit.allgather(_to_bytes(obj), label, process_set, wake=False).wait()
    return [_from_bytes(part) for part in torch.split(data, lengths)]
