"""The collectives: what users call.

Common to all: `process_set` limits a call to its ranks, all of which must make it. `name`
matches the call between ranks (unnamed calls are matched by their order). Tensors are dense,
on the CPU or on this rank's GPU, on the same kind of device on all ranks; non-contiguous ones are
copied. On a GPU a call returns once the work is enqueued; the current stream waits for it. The
forms with `_async` return a Handle for `poll` and `synchronize`, those that end in `_` write the
result into their argument. What is differentiable is so any number of times, in forward mode and
under torch.func too (docs/algorithms.md has the rules).

Raises, in all of them: TypeError or ValueError on the calling rank for a bad argument, such
as a name in flight or a rank outside the set; RingreduceError on every rank that takes part
if the ranks disagree about dtype, shape, operation, root or scale, if a peer is lost, or before
`init` and after `shutdown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ringreduce import _core
from ringreduce._ops import autograd, plain, submit
from ringreduce._ops.handle import Handle
from ringreduce._runtime.process_set import ProcessSet, global_process_set
from ringreduce.compression import Compression, Compressor, effective
from ringreduce.reduction import ReduceOp

_core.use_exchange_api(Tensor)


def _only(tensors: list[Tensor]) -> Tensor:
    return tensors[0]


def _named_tensor(_index: int) -> str:
    return "tensor"


def _received_splits(rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device="cpu")


def allreduce(
    tensor: Tensor,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """Combine a tensor of the same shape and dtype from every rank, element by element.

    Args:
        tensor: any shape, any supported dtype.
        compression: how to send it between hosts; has no effect on a set within one host.
        op: Average (default), Sum, Min, Max or Product. bool has no Average, complex numbers
            no Min and Max.
        prescale_factor, postscale_factor: multiply the inputs, and the result.

    Returns a new tensor with the same bits on all ranks. Differentiable; for Min and Max, ranks that
    tie share the gradient equally.
    """
    if compression is not Compression.none:
        compression = effective(compression, process_set)
    tensor, context = compression.compress(tensor)
    result = plain.like("allreduce", tensor, name, process_set, op, prescale_factor, postscale_factor)
    if result is None:
        arguments = (name, op, prescale_factor, postscale_factor, process_set)
        if autograd.wanted(tensor):
            (result,) = autograd.allreduce([tensor], *arguments)
        else:
            (result,) = submit.allreduce([tensor], False, *arguments, _named_tensor, wake=False).wait()
    return compression.decompress(result, context)


def allreduce_async(
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`allreduce` without waiting; its result is the new tensor (not differentiable)."""
    return submit.allreduce(
        [tensor], False, name, op, prescale_factor, postscale_factor, process_set, _named_tensor
    ).map(_only)


def allreduce_(
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`allreduce` in place; returns `tensor`. ValueError if the tensor requires grad."""
    if not plain.in_place("allreduce", tensor, name, process_set, op, prescale_factor, postscale_factor):
        arguments = (name, op, prescale_factor, postscale_factor, process_set)
        submit.allreduce([tensor], True, *arguments, _named_tensor, wake=False).wait()
    return tensor


def allreduce_async_(
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`allreduce_` without waiting: leave `tensor` alone until it is synchronized."""
    return submit.allreduce(
        [tensor], True, name, op, prescale_factor, postscale_factor, process_set, _named_tensor
    ).map(_only)


def grouped_allreduce(
    tensors: Sequence[Tensor],
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[Tensor]:
    """`allreduce` of several tensors as one operation for each dtype among them.

    The tensors may have different shapes; their number and order is the same on all ranks.
    Returns new tensors in the same order. Differentiable.
    """
    if compression is not Compression.none:
        compression = effective(compression, process_set)
    pairs = [compression.compress(tensor) for tensor in tensors]
    inputs = [tensor for tensor, _ in pairs]
    arguments = (name, op, prescale_factor, postscale_factor, process_set)
    if autograd.wanted(*inputs):
        results = list(autograd.allreduce(inputs, *arguments))
    else:
        results = submit.allreduce(inputs, False, *arguments, wake=False).wait()
    return [compression.decompress(result, context) for result, (_, context) in zip(results, pairs, strict=True)]


def grouped_allreduce_async(
    tensors: Sequence[Tensor],
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Tensor]]:
    """`grouped_allreduce` without waiting (not differentiable)."""
    return submit.allreduce(list(tensors), False, name, op, prescale_factor, postscale_factor, process_set)


def grouped_allreduce_(
    tensors: Sequence[Tensor],
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[Tensor]:
    """`grouped_allreduce` in place; returns the tensors. ValueError if one requires grad."""
    arguments = (name, op, prescale_factor, postscale_factor, process_set)
    return submit.allreduce(list(tensors), True, *arguments, wake=False).wait()


def grouped_allreduce_async_(
    tensors: Sequence[Tensor],
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[Tensor]]:
    """`grouped_allreduce_` without waiting."""
    return submit.allreduce(list(tensors), True, name, op, prescale_factor, postscale_factor, process_set)


def broadcast(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """The root's tensor on every rank, as a new tensor; `tensor` stays as it is.

    Args:
        tensor: any shape, any supported dtype, the same on all ranks.
        root_rank: global rank of the root, a member of the set.

    Differentiable: the averaged gradient on the root, zeros elsewhere.
    """
    result = plain.like("broadcast", tensor, name, process_set, root=root_rank)
    if result is not None:
        return result
    if autograd.wanted(tensor):
        return autograd.broadcast(tensor, root_rank, name, process_set)
    return submit.broadcast(tensor, root_rank, False, name, process_set, wake=False).wait()


def broadcast_async(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`broadcast` without waiting (not differentiable)."""
    return submit.broadcast(tensor, root_rank, False, name, process_set)


def broadcast_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`broadcast` in place; returns `tensor`. ValueError if the tensor requires grad."""
    if not plain.in_place("broadcast", tensor, name, process_set, root=root_rank):
        submit.broadcast(tensor, root_rank, True, name, process_set, wake=False).wait()
    return tensor


def broadcast_async_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`broadcast_` without waiting: leave `tensor` alone until it is synchronized."""
    return submit.broadcast(tensor, root_rank, True, name, process_set)


def allgather(tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set) -> Tensor:
    """The tensors of all ranks, joined along dimension 0 in rank order.

    Args:
        tensor: one dimension at least; dimension 0 may differ by rank, the others not.

    Differentiable: each rank gets the average of its rows' gradients.
    """
    result = plain.rows("allgather", tensor, name, process_set)
    if result is not None:
        return result
    if autograd.wanted(tensor):
        return autograd.allgather(tensor, name, process_set)
    return submit.allgather(tensor, name, process_set, wake=False).wait()[0]


def allgather_async(
    tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Tensor]:
    """`allgather` without waiting (not differentiable)."""
    return submit.allgather(tensor, name, process_set).map(lambda result: result[0])


def reducescatter(
    tensor: Tensor,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | int | None = ReduceOp.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Tensor:
    """`allreduce`, of which each rank gets its part of dimension 0.

    Args:
        tensor: one dimension at least; the first `shape[0] % size` ranks get one row more.
        compression, op, prescale_factor, postscale_factor: as in `allreduce`.

    Returns a new tensor with this rank's rows. Differentiable.
    """
    if compression is not Compression.none:
        compression = effective(compression, process_set)
    tensor, context = compression.compress(tensor)
    result = plain.rows("reducescatter", tensor, name, process_set, op, prescale_factor, postscale_factor)
    if result is None:
        arguments = (name, op, prescale_factor, postscale_factor, process_set)
        if autograd.wanted(tensor):
            result = autograd.reducescatter(tensor, *arguments)
        else:
            result = submit.reducescatter(tensor, *arguments, wake=False).wait()
    return compression.decompress(result, context)


def reducescatter_async(
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = ReduceOp.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[Tensor]:
    """`reducescatter` without waiting (not differentiable)."""
    return submit.reducescatter(tensor, name, op, prescale_factor, postscale_factor, process_set)


def alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor | tuple[Tensor, Tensor]:
    """Send a part of dimension 0 to each rank, and join what comes, in rank order.

    Args:
        tensor: one dimension at least; the dimensions after the first agree on all ranks.
        splits: rows for each rank of the set, 1-D int32; by default equal parts.

    Returns the rows received; with `splits` the pair (rows, received_splits), the latter
    int32 on the CPU. Differentiable.
    """
    short = plain.rows("alltoall", tensor, name, process_set) if splits is None else None
    if short is not None:
        return short
    if autograd.wanted(tensor):
        output, rows = autograd.alltoall(tensor, splits, name, process_set)
    else:
        output, rows = submit.alltoall(tensor, splits, name, process_set, wake=False).wait()
    return output if splits is None else (output, _received_splits(rows))


def alltoall_async(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[tuple[Tensor, Tensor]]:
    """`alltoall` without waiting; its result is always the pair (rows, received_splits)."""
    handle = submit.alltoall(tensor, splits, name, process_set)
    return handle.map(lambda result: (result[0], _received_splits(result[1])))


def reduce(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`allreduce` of which only the root gets the result, as a new tensor.

    Args:
        tensor: any shape, any supported dtype, the same on all ranks.
        root_rank: global rank of the root, a member of the set.
        op, prescale_factor, postscale_factor: as in `allreduce`.

    Returns the result on the root (the bits of `allreduce`), zeros elsewhere. Differentiable for
    Average and Sum: what comes back to the root goes to all ranks; ValueError for the others.

    The algorithm is that of `allreduce` with writing left out: between hosts it sends as much.
    """
    arguments = (name, op, prescale_factor, postscale_factor, process_set)
    result = plain.like(
        "reduce", tensor, name, process_set, op, prescale_factor, postscale_factor, root_rank, torch.zeros_like
    )  # fmt: skip
    if result is not None:
        return result
    if autograd.wanted(tensor):
        return autograd.reduce(tensor, root_rank, *arguments)
    return submit.reduce(tensor, root_rank, False, *arguments, wake=False).wait()


def reduce_async(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`reduce` without waiting (not differentiable)."""
    return submit.reduce(tensor, root_rank, False, name, op, prescale_factor, postscale_factor, process_set)


def reduce_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`reduce` in place: the root's tensor becomes the result, the others stay as they are.

    Returns `tensor`. ValueError if it requires grad.
    """
    arguments = (name, op, prescale_factor, postscale_factor, process_set)
    if not plain.in_place("reduce", tensor, name, process_set, op, prescale_factor, postscale_factor, root_rank):
        submit.reduce(tensor, root_rank, True, *arguments, wake=False).wait()
    return tensor


def reduce_async_(
    tensor: Tensor,
    root_rank: int,
    name: str | None = None,
    op: ReduceOp | int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`reduce_` without waiting: leave `tensor` alone until it is synchronized."""
    return submit.reduce(tensor, root_rank, True, name, op, prescale_factor, postscale_factor, process_set)


def gather(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    """`allgather` of which only the root gets the result.

    Args:
        tensor: one dimension at least; dimension 0 may differ by rank, the others not.
        root_rank: global rank of the root, a member of the set.

    Returns all rows in rank order on the root, elsewhere a tensor without rows. Differentiable: each
    rank gets its rows' gradients from the root. The others call backward(), too, from what they
    got (its sum is 0).

    An alltoall in which all is for one rank: from other hosts each part is one message to the root.
    """
    if autograd.wanted(tensor):
        return autograd.gather(tensor, root_rank, name, process_set)
    result, _ = submit.gather(tensor, root_rank, name, process_set, wake=False).wait()
    return result


def gather_async(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Tensor]:
    """`gather` without waiting (not differentiable)."""
    return submit.gather(tensor, root_rank, name, process_set).map(lambda result: result[0])


def scatter(
    tensor: Tensor,
    root_rank: int,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """A part of the root's dimension 0 for each rank, in rank order.

    Args:
        tensor: on the root the rows to hand out; elsewhere its rows are not read, but dtype, device and
            the dimensions after the first are those of the root.
        root_rank: global rank of the root, a member of the set.
        splits: on the root rows for each rank of the set, 1-D int32; by default equal parts. Elsewhere not read.

    Returns this rank's rows, a new tensor. Differentiable: the root gets the gradients of all parts,
    the others zeros.

    An alltoall in which all is from one rank: to other hosts each part is one message from the root.
    """
    if autograd.wanted(tensor):
        return autograd.scatter(tensor, root_rank, splits, name, process_set)
    return submit.scatter(tensor, root_rank, splits, name, process_set, wake=False).wait()[0]


def scatter_async(
    tensor: Tensor,
    root_rank: int,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`scatter` without waiting (not differentiable)."""
    return submit.scatter(tensor, root_rank, splits, name, process_set).map(lambda result: result[0])


Output = TypeVar("Output", Tensor, Sequence[Tensor])


def allgather_into(
    output: Output, tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Output:
    """`allgather` into memory that is there; returns `output`.

    Args:
        output: a tensor, or several that are filled one after the other, with rows like those of `tensor`
            and room for the rows of all ranks. One tensor is written to directly.
        tensor: one dimension at least; dimension 0 may differ by rank, the others not.

    ValueError for an `output` of another size, on the rank whose it is, once the others have sent their
    parts; if it requires grad; or if its rows are other ones.
    """
    submit.allgather(tensor, name, process_set, output, wake=False).wait()
    return output


def allgather_into_async(
    output: Output, tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[Output]:
    """`allgather_into` without waiting: leave `output` alone until it is synchronized."""
    return submit.allgather(tensor, name, process_set, output).map(lambda _: output)


def reducescatter_into(
    output: Output,
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = ReduceOp.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Output:
    """`reducescatter` into memory that is there; returns `output`.

    Args:
        output: a tensor, or several that are filled one after the other, with this rank's number of rows.
        tensor, op, prescale_factor, postscale_factor: as in `reducescatter`.

    ValueError for an `output` with another number of rows, with other rows, or that requires grad.
    """
    arguments = (name, op, prescale_factor, postscale_factor, process_set)
    submit.reducescatter(tensor, *arguments, output=output, wake=False).wait()
    return output


def reducescatter_into_async(
    output: Output,
    tensor: Tensor,
    name: str | None = None,
    op: ReduceOp | int | None = ReduceOp.Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[Output]:
    """`reducescatter_into` without waiting: leave `output` alone until it is synchronized."""
    handle = submit.reducescatter(tensor, name, op, prescale_factor, postscale_factor, process_set, output=output)
    return handle.map(lambda _: output)


def alltoall_into(
    output: Output,
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Tensor:
    """`alltoall` into memory that is there; returns the received splits, int32 on the CPU.

    Args:
        output: a tensor, or several that are filled one after the other, with rows like those of `tensor`
            and room for what comes. One tensor is written to directly.
        tensor, splits: as in `alltoall`.

    ValueError for an `output` of another size, on the rank whose it is, once the others have sent their
    parts; if it requires grad; or if its rows are other ones.
    """
    _, rows = submit.alltoall(tensor, splits, name, process_set, output, wake=False).wait()
    return _received_splits(rows)


def alltoall_into_async(
    output: Output,
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[Tensor]:
    """`alltoall_into` without waiting: leave `output` alone until it is synchronized."""
    return submit.alltoall(tensor, splits, name, process_set, output).map(lambda result: _received_splits(result[1]))


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Wait until every rank of the set has come here. Pending operations do not hold it up."""
    if not plain.barrier(process_set):
        submit.barrier(process_set, wake=False).wait()


def barrier_async(process_set: ProcessSet = global_process_set) -> Handle[None]:
    """`barrier` without waiting."""
    return submit.barrier(process_set)
