"""From tensors to the core's operations: each function checks, submits and returns a Handle.

The core is given the tensors to keep until it is done with them; results are made when the handle is
waited for, from what that takes. `None` for a name lets the core match the
operation by a counter. With `wake=False` the caller waits at once: no other thread need be woken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.dlpack import from_dlpack

from ringreduce._core import Op
from ringreduce._ops import check, dtypes, gpus
from ringreduce._ops.compiled import untraced
from ringreduce._ops.handle import Handle, check_name
from ringreduce._ops.memory import extent
from ringreduce._runtime.process_set import ProcessSet

T = TypeVar("T")


class Request(NamedTuple):
    """One operation, as `Engine.submit` takes it. Tensors are addresses and numbers of elements."""

    name: str | None = None
    inputs: Sequence[tuple[int, int]] = ()
    outputs: Sequence[tuple[int, int]] = ()  # one an input; where sizes differ: what the result fills, or nothing
    shapes: Sequence[tuple[int, ...]] = ()  # of the inputs, as far as they must agree
    dtype: int = 0
    op: int = 1
    prescale: float = 1.0
    postscale: float = 1.0
    root: int = -1  # rank within the set
    counts: Sequence[int] = ()  # elements by rank
    keep: Any = None


def _places(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]


def _submit(
    kind: str, requests: Sequence[Request], name: str | None, process_set: ProcessSet, stream: int, wake: bool,
    finish: Callable[[Sequence[Op]], T],
) -> Handle[T]:  # fmt: skip
    """All of the requests, or none; `name` is the caller's."""
    engine, set_id = process_set.usable_engine(), process_set.process_set_id or 0
    key = None
    if name is not None:
        check.op_name(name)
        key = check_name(kind, set_id, name)
    ops = engine.submit(set_id, kind, requests, stream, wake)
    return Handle(ops, lambda: finish(ops), key)


def _root(process_set: ProcessSet, root_rank: Any) -> int:
    """The root's rank within the set, of which this process is a member."""
    process_set.usable_engine()
    return process_set.set_rank("root_rank", root_rank)


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
    pre = check.scale("prescale_factor", prescale)
    post = check.scale("postscale_factor", postscale)
    groups: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(check.tensor(argument(index), tensor), []).append(index)
        check.reduction(op, tensor.dtype)
        if in_place:
            check.writable(argument(index), tensor)
    stream = gpus.stream_of_all(argument, tensors)
    sources = [packed(tensor) for tensor in tensors]
    outputs = sources if in_place else _results_like(sources, stream)
    results = list(tensors) if in_place else outputs
    requests = []
    for code, members in groups.items():
        label = name
        if name is not None and len(groups) > 1:
            label = f"{name}.{dtypes.NAMES[code]}"
        mine = [sources[i] for i in members]
        requests.append(
            Request(
                label, _places(mine), _places([outputs[i] for i in members]), [tuple(source.shape) for source in mine],
                code, check.reduction(op, dtypes.BY_CODE[code]), pre, post,
                keep=[tensor for i in members for tensor in (sources[i], results[i])],
            )
        )  # fmt: skip
    if in_place:
        return _submit(
            "allreduce", requests, name, process_set, stream, wake,
            lambda _: [_copy_back(s, t) for s, t in zip(sources, results, strict=True)],
        )  # fmt: skip
    return _submit("allreduce", requests, name, process_set, stream, wake, lambda _: results)


@untraced
def broadcast(
    tensor: Any, root_rank: int, in_place: bool, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[Tensor]:
    """Broadcast from the global rank `root_rank`."""
    code = check.tensor("tensor", tensor)
    if in_place:
        check.writable("tensor", tensor)
    root = _root(process_set, root_rank)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    (output,) = [source] if in_place else _results_like([source], stream)
    request = Request(
        name, _places([source]), _places([output]), [tuple(source.shape)], code, root=root,
        keep=(source, tensor if in_place else output),
    )  # fmt: skip
    return _submit(
        "broadcast", [request], name, process_set, stream, wake,
        lambda _: _copy_back(source, tensor) if in_place else output,
    )  # fmt: skip


@untraced
def reduce(
    tensor: Any, root_rank: int, in_place: bool, name: str | None, op: Any, prescale: float, postscale: float,
    process_set: ProcessSet, wake: bool = True,
) -> Handle[Tensor]:  # fmt: skip
    """Reduce to the global rank `root_rank`; elsewhere the result is zeros, or `tensor` as it is."""
    code = check.tensor("tensor", tensor)
    reduction = check.reduction(op, tensor.dtype)
    if in_place:
        check.writable("tensor", tensor)
    root = _root(process_set, root_rank)
    here = root == process_set.rank()
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    (output,) = [source] if in_place else _results_like([source], stream)
    if not here and not in_place:
        output.zero_()
    request = Request(
        name, _places([source]), _places([output]) if here else [(0, 0)], [tuple(source.shape)], code, reduction,
        check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale), root,
        keep=(source, tensor if in_place else output),
    )  # fmt: skip
    result = tensor if in_place else output
    return _submit(
        "reduce", [request], name, process_set, stream, wake,
        lambda _: _copy_back(source, tensor) if in_place and here else result,
    )  # fmt: skip


class _Into:
    """The caller's memory for a result: tensors that it fills, end to end. None where the core has its own."""

    def __init__(self, output: Any, tensor: Tensor) -> None:
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "tensor: got one that requires grad, which the forms that write into given memory cannot "
                "differentiate; pass tensor.detach(), or use the form that returns a new tensor"
            )
        self.given: list[Tensor] = [output] if isinstance(output, Tensor) else list(output)
        for index, target in enumerate(self.given):
            argument = "output" if isinstance(output, Tensor) else f"output[{index}]"
            check.with_rows(argument, target)
            check.writable(argument, target)
            if target.dtype != tensor.dtype or target.shape[1:] != tensor.shape[1:]:
                raise ValueError(
                    f"{argument}: expected rows like those of tensor, {tensor.dtype} {list(tensor.shape[1:])}, "
                    f"got {target.dtype} {list(target.shape[1:])}"
                )
        gpus.stream_of_all(lambda i: "tensor" if not i else "output", [tensor, *self.given])
        self._check_apart(tensor)
        self.memory = [packed(target) for target in self.given]  # itself where it is plain memory

    def _check_apart(self, tensor: Tensor) -> None:
        """ValueError where results would be written over what is read, or over each other."""
        extents = sorted(extent(one) for one in (tensor, *self.given) if one.numel())
        if any(end > begin for (_, end), (begin, _) in pairwise(extents)):
            raise ValueError("output: the memory it spans must not overlap that of tensor, nor that of another output")

    def require(self, rows: int) -> None:
        """ValueError unless it has room for so many rows."""
        room = sum(target.shape[0] for target in self.given)
        if room != rows:
            raise ValueError(f"output: has room for {room} rows, the result has {rows}")

    def finish(self) -> None:
        """Bring it to tensors that are not contiguous, and let autograd know."""
        for source, target in zip(self.memory, self.given, strict=True):
            _copy_back(source, target)


def _move_rows(
    kind: str, tensor: Tensor, code: int, name: str | None, process_set: ProcessSet, wake: bool,
    sends: dict[int, int] | None = None, root: int = -1, output: Any = None,
) -> Handle[tuple[Tensor, list[int]]]:  # fmt: skip
    """The rows that come, and how many from each rank. `sends`: rows for ranks of the set; None: all to all."""
    into = None if output is None else _Into(output, tensor)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    row = tuple(source.shape[1:])
    width = math.prod(row)
    if not width:  # nothing would show how many there are, so their numbers are sent
        stream, code = gpus.NO_STREAM, dtypes.CODES[torch.int64]
        numbers = [source.shape[0]] if sends is None else list(sends.values())
        source = torch.tensor(numbers, dtype=torch.int64, device="cpu")
        sends = sends and dict.fromkeys(sends, 1)
    counts = [] if sends is None else [sends.get(rank, 0) * (width or 1) for rank in range(process_set.size())]
    memory = into.memory if into and width else []
    keep = (source, *memory, *into.given) if into else (source,)

    def finish(ops: Sequence[Op]) -> tuple[Tensor, list[int]]:
        (op,) = ops
        if width:
            rows = [count // width for count in op.counts()]
        else:
            counted = iter(received(op, source, (sum(op.counts()),)).tolist())
            rows = [next(counted) if count else 0 for count in op.counts()]
        if into is None:
            return received(op, tensor, (sum(rows), *row)), rows
        into.require(sum(rows))
        into.finish()
        return tensor, rows

    request = Request(
        name, _places([source]), _places(memory), [row], code, root=root, counts=counts, keep=keep
    )  # fmt: skip
    return _submit(kind, [request], name, process_set, stream, wake, finish)


@untraced
def allgather(
    tensor: Any, name: str | None, process_set: ProcessSet, output: Any = None, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """Gather along dimension 0; the result is the output and the rows from each rank."""
    code = check.with_rows("tensor", tensor)
    return _move_rows("allgather", tensor, code, name, process_set, wake, output=output)


@untraced
def gather(
    tensor: Any, root_rank: int, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """The rows of all on the global rank `root_rank`, none elsewhere; and the rows from each rank."""
    code = check.with_rows("tensor", tensor)
    root = _root(process_set, root_rank)
    return _move_rows("gather", tensor, code, name, process_set, wake, {root: tensor.shape[0]}, root)


@untraced
def scatter(
    tensor: Any, root_rank: int, splits: Any, name: str | None, process_set: ProcessSet, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """`splits[i]` rows of the global rank `root_rank` to rank i; and the rows from each rank."""
    code = check.with_rows("tensor", tensor)
    root = _root(process_set, root_rank)
    sends: dict[int, int] = {}
    if root == process_set.rank():
        sends = dict(enumerate(check.splits(splits, tensor.shape[0], process_set.size())))
    else:
        tensor = tensor[:0]
    return _move_rows("scatter", tensor, code, name, process_set, wake, sends, root)


@untraced
def alltoall(
    tensor: Any, splits: Any, name: str | None, process_set: ProcessSet, output: Any = None, wake: bool = True
) -> Handle[tuple[Tensor, list[int]]]:
    """Send `splits[i]` rows to rank i; the result is the output and the rows received."""
    code = check.with_rows("tensor", tensor)
    process_set.usable_engine()
    sends = dict(enumerate(check.splits(splits, tensor.shape[0], process_set.size())))
    return _move_rows("alltoall", tensor, code, name, process_set, wake, sends, output=output)


@untraced
def reducescatter(
    tensor: Any, name: str | None, op: Any, prescale: float, postscale: float,
    process_set: ProcessSet, rows: list[int] | None = None, output: Any = None, wake: bool = True,
) -> Handle[Tensor]:  # fmt: skip
    """Reduce, and give rank i of the set its rows: `rows[i]`, or nearly equal parts."""
    code = check.with_rows("tensor", tensor)
    process_set.usable_engine()
    reduction = check.reduction(op, tensor.dtype)
    into = None if output is None else _Into(output, tensor)
    stream = gpus.stream_of("tensor", tensor)
    source = packed(tensor)
    row = tuple(source.shape[1:])
    if rows is None:
        share, more = divmod(source.shape[0], process_set.size())
        rows = [share + (rank < more) for rank in range(process_set.size())]
    own = rows[process_set.rank()]
    if into is not None:
        into.require(own)
        targets = into.memory
    elif stream == gpus.NO_STREAM:
        targets = [torch.empty((own, *row), dtype=source.dtype, device="cpu")]
    else:
        targets = [gpus.backend.empty((own, *row), source.dtype, gpus.backend.index(tensor))]
    request = Request(
        name, _places([source]), _places(targets), [tuple(source.shape)], code, reduction,
        check.scale("prescale_factor", prescale), check.scale("postscale_factor", postscale),
        counts=[count * math.prod(row) for count in rows], keep=(source, *targets, *(into.given if into else ())),
    )  # fmt: skip

    def finish(_: Sequence[Op]) -> Tensor:
        if into is None:
            return targets[0]
        into.finish()
        return source

    return _submit("reducescatter", [request], name, process_set, stream, wake, finish)


@untraced
def barrier(process_set: ProcessSet, wake: bool = True) -> Handle[None]:
    """Nothing but having met."""
    return _submit("barrier", [Request()], None, process_set, gpus.NO_STREAM, wake, lambda _: None)
