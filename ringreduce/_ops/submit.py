"""From tensors to the core's operations: each function checks, submits and returns a Handle.

The core is given the tensors to keep until it is done with them; results are made when the handle is
waited for, from what that takes. `None` for a name lets the core match the
operation by a counter. With `wake=False` the caller waits at once: no other thread need be woken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.dlpack import from_dlpack

from ringreduce._core import Op
from ringreduce._ops import check, dtypes, gpus
from ringreduce._ops.compiled import untraced
from ringreduce._ops.handle import Handle, check_name
from ringreduce._runtime.process_set import ProcessSet


def packed(tensor: Tensor) -> Tensor:
    """The tensor's elements in row-major order: itself where it is so, else a copy."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def received(op: Op, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The output of an allgather or alltoall as a tensor beside `like`; on the CPU without a copy."""
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    flat: Tensor = gpus.received(op) if op.on_gpu else from_dlpack(op.output())
    return flat.view(like.dtype).view(shape)


def _results_like(tensors: Sequence[Tensor], stream: int) -> list[Tensor]:
    if stream == gpus.NO_STREAM:
        return [torch.empty_like(tensor) for tensor in tensors]
    return [gpus.backend.empty_like(tensor) for tensor in tensors]


def _copy_back(source: Tensor, target: Tensor) -> Tensor:
    """Bring the result of an in-place operation to where the caller's tensor is, and let autograd know."""
    if source.data_ptr() == target.data_ptr():
        increment_version(target)  # the core has written to it
        return target
    with torch.inference_mode() if target.is_inference() else nullcontext():
        target.detach().copy_(source)
    return target


@untraced
def allreduce(
    tensors: Sequence[Any],
    in_place: bool,
    name: str | None,
    op: Any,
    prescale: float,
    postscale: float,
    process_set: ProcessSet,
    argument: Callable[[int], str] = lambda index: f"tensors[{index}]",
    wake: bool = True,
) -> Handle[list[Tensor]]:
    """One allreduce of a group of tensors: one operation for each dtype among them."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    check.op_name(name)
    pre = check.scale("prescale_factor", prescale)
    post = check.scale("postscale_factor", postscale)
    groups: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(check.tensor(argument(index), tensor), []).append(index)
        check.reduction(op, tensor.dtype)
        if in_place:
            check.writable(argument(index), tensor)
    key = check_name("allreduce", set_id, name)
    stream = gpus.stream_of_all(argument, tensors)
    sources = [packed(tensor) for tensor in tensors]
    outputs = sources if in_place else _results_like(sources, stream)
    results = list(tensors) if in_place else outputs
    parts = []
    for code, members in groups.items():
        label = name
        if name is not None and len(groups) > 1:
            label = f"{name}.{dtypes.NAMES[code]}"
        parts.append(
            (
                label,
                [sources[i].data_ptr() for i in members],
                [outputs[i].data_ptr() for i in members],
                [sources[i].numel() for i in members],
                [tuple(sources[i].shape) for i in members],
                code,
                check.reduction(op, dtypes.BY_CODE[code]),
                [tensor for i in members for tensor in (sources[i], results[i])],
            )
        )
    ops = engine.allreduce(set_id, parts, pre, post, stream, wake)
    if in_place:
        return Handle(ops, lambda: [_copy_back(s, t) for s, t in zip(sources, results, strict=True)], key)
    return Handle(ops, lambda: results, key)


@untraced
def broadcast(
    tensor: Any, root_rank: int, in_place: bool, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[Tensor]:
    """Broadcast from the global rank `root_rank`."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    check.op_name(name)
    code = check.tensor("tensor", tensor)
    if in_place:
        check.writable("tensor", tensor)
    root = process_set.set_rank("root_rank", root_rank)
    key = check_name("broadcast", set_id, name)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    (output,) = [source] if in_place else _results_like([source], stream)
    op = engine.broadcast(
        set_id, name, source.data_ptr(), output.data_ptr(), source.numel(),
        tuple(source.shape), code, root, (source, tensor if in_place else output), stream, wake,
    )  # fmt: skip
    return Handle([op], (lambda: _copy_back(source, tensor)) if in_place else (lambda: output), key)


@untraced
def allgather(
    tensor: Any, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """Gather along dimension 0; the result is the output and the rows from each rank."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    check.op_name(name)
    code = check.with_rows("tensor", tensor)
    key = check_name("allgather", set_id, name)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    row = tuple(source.shape[1:])
    width = math.prod(row)
    if width:
        op = engine.allgather(set_id, name, source.data_ptr(), source.numel(), row, code, (source,), stream, wake)
    else:
        # Rows without elements: nothing shows how many there are, so their number is sent.
        stream = gpus.NO_STREAM
        source = torch.tensor([source.shape[0]], dtype=torch.int64, device="cpu")
        code = dtypes.CODES[torch.int64]
        op = engine.allgather(set_id, name, source.data_ptr(), 1, row, code, (source,), stream, wake)

    def finish() -> tuple[Tensor, list[int]]:
        if not width:
            rows = received(op, source, (process_set.size(),)).tolist()
        else:
            rows = [count // width for count in op.counts()]
        return received(op, tensor, (sum(rows), *row)), rows

    return Handle([op], finish, key)


@untraced
def reducescatter(
    tensor: Any, name: str | None, op: Any, prescale: float, postscale: float,
    process_set: ProcessSet, rows: list[int] | None = None, wake: bool = True,
) -> Handle[Tensor]:  # fmt: skip
    """Reduce, and give rank i of the set its rows: `rows[i]`, or nearly equal parts."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    check.op_name(name)
    code = check.with_rows("tensor", tensor)
    reduction = check.reduction(op, tensor.dtype)
    key = check_name("reducescatter", set_id, name)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    row = tuple(source.shape[1:])
    if rows is None:
        share, more = divmod(source.shape[0], process_set.size())
        rows = [share + (rank < more) for rank in range(process_set.size())]
    shape = (rows[process_set.rank()], *row)
    if stream == gpus.NO_STREAM:
        output = torch.empty(shape, dtype=source.dtype, device="cpu")
    else:
        output = gpus.backend.empty(shape, source.dtype, gpus.backend.index(tensor))
    submitted = engine.reducescatter(
        set_id, name, source.data_ptr(), output.data_ptr(),
        [count * math.prod(row) for count in rows], tuple(source.shape), code, reduction,
        check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale),
        (source, output), stream, wake,
    )  # fmt: skip
    return Handle([submitted], lambda: output, key)


@untraced
def alltoall(
    tensor: Any, splits: Any, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """Send `splits[i]` rows to rank i; the result is the output and the rows received."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    check.op_name(name)
    code = check.with_rows("tensor", tensor)
    parts = check.splits(splits, tensor.shape[0], process_set.size())
    key = check_name("alltoall", set_id, name)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    row = tuple(source.shape[1:])
    width = math.prod(row)
    counts = [part * width for part in parts]
    if not width:  # as in allgather: send the numbers of rows
        stream = gpus.NO_STREAM
        source, counts = torch.tensor(parts, dtype=torch.int64, device="cpu"), [1] * len(parts)
        code = dtypes.CODES[torch.int64]
    op = engine.alltoall(set_id, name, source.data_ptr(), counts, row, code, (source,), stream, wake)

    def finish() -> tuple[Tensor, list[int]]:
        if not width:
            rows = received(op, source, (process_set.size(),)).tolist()
        else:
            rows = [count // width for count in op.counts()]
        return received(op, tensor, (sum(rows), *row)), rows

    return Handle([op], finish, key)
