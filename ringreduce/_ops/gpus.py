"""GPU tensors: what ringreduce asks of torch.cuda, and the GPU that this rank has attached.

    tensor ──► holds it a GPU?  no ──► stream -1: the CPU's path
                                yes ─► the rank's GPU (attached at its first tensor), current stream

The functions of `Cuda` are all that is asked of torch.cuda. Tests put another object in `backend`,
for which chosen CPU tensors are on a GPU.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ringreduce._core import Gpu, Op
from ringreduce._ops import dtypes
from ringreduce._runtime import running

LIBRARY = Path(__file__).parents[1] / "libringreduce_cuda.so"
NO_STREAM = -1  # the tensor is on the CPU


class Cuda:
    """torch.cuda. `index` is a device's number, a stream is its address (0: the default stream)."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is on a GPU."""
        return tensor.is_cuda

    def index(self, tensor: Tensor) -> int:
        """The number of the tensor's GPU."""
        return tensor.get_device()

    def current_stream(self, index: int) -> int:
        """The stream on which the caller's work goes."""
        # What torch's own compiler asks: an object less than torch.cuda.current_stream(), and every gradient asks.
        stream: int = torch._C._cuda_getCurrentRawStream(index)
        return stream

    def record(self, tensor: Tensor, stream: int, index: int) -> None:
        """Keep the tensor's memory from reuse until what is on `stream` now has run."""
        # To ExternalStream, 0 means that none is given.
        if stream:
            tensor.record_stream(torch.cuda.ExternalStream(stream, device=index))  # type: ignore[no-untyped-call]
        else:
            tensor.record_stream(torch.cuda.default_stream(index))

    def joined(self, stream: int) -> None:
        """The current stream is ordered behind `stream` (for tests; CUDA does it itself)."""

    def to_host_later(self, flag: Tensor) -> Callable[[], bool]:
        """A function that waits until what is enqueued now has run, and says what the flag on the GPU is then."""
        host = torch.empty((), dtype=torch.bool, pin_memory=True)
        host.copy_(flag, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def read() -> bool:
            copied.synchronize()
            return bool(host)

        return read

    def empty(self, shape: Sequence[int], dtype: torch.dtype, index: int | None = None) -> Tensor:
        """A new tensor on a GPU (None: the current one)."""
        return torch.empty(tuple(shape), dtype=dtype, device="cuda" if index is None else torch.device("cuda", index))

    def to_host(self, tensor: Tensor) -> Tensor:
        """A copy in host memory, once what is enqueued now has run."""
        return tensor.cpu()

    def from_host(self, tensor: Tensor, source: Tensor) -> None:
        """Copy from host memory, behind what is enqueued now."""
        tensor.copy_(source)

    def empty_like(self, tensor: Tensor) -> Tensor:
        """A new tensor beside another one."""
        return torch.empty_like(tensor)


backend = Cuda()


def stream_of(argument: str, tensor: Tensor) -> int:
    """The stream for the core: NO_STREAM for a CPU tensor, else the current one of its GPU.

    ValueError if the GPU cannot be used, or is not the one that this rank uses.
    """
    if not backend.holds(tensor):
        return NO_STREAM
    gpu = attached(backend.index(tensor))
    if gpu.device != backend.index(tensor):
        raise ValueError(
            f"{argument}: the tensor is on {place(tensor)}, but this rank communicates on cuda:{gpu.device}; "
            "a rank uses one GPU (call torch.cuda.set_device() before the first tensor is made, and use that device)"
        )
    return backend.current_stream(gpu.device)


def stream_of_all(argument: Any, tensors: Sequence[Tensor]) -> int:
    """The same for a group, which must be on one device. `argument(i)` names the i-th tensor."""
    streams = [stream_of(argument(index), tensor) for index, tensor in enumerate(tensors)]
    for index, stream in enumerate(streams):
        if (stream == NO_STREAM) != (streams[0] == NO_STREAM):
            raise ValueError(
                f"{argument(index)} is on {place(tensors[index])} and {argument(0)} on {place(tensors[0])}: "
                "a group is on one device; move the tensors together, or make two calls"
            )
    return streams[0] if streams else NO_STREAM


def place(tensor: Tensor) -> str:
    """The device, for messages."""
    return f"cuda:{backend.index(tensor)}" if backend.holds(tensor) else str(tensor.device)


def attached(index: int) -> Gpu:
    """The rank's GPU; attaches GPU `index` if there is none yet."""
    context = running.require()
    if context.gpu is None:
        gpu = Gpu(str(LIBRARY), nccl_candidates(), index)
        context.engine.attach_gpu(gpu)
        context.gpu = gpu
    return context.gpu


def nccl_candidates() -> list[str]:
    """Where packages of PyPI put NCCL (torch's own is in the process already, if it has one)."""
    roots = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    paths = (Path(root, "nvidia", "nccl", "lib", "libnccl.so.2") for root in roots)
    return [str(path) for path in paths if path.is_file()]


def after(ops: Iterable[Op]) -> None:
    """Operations are enqueued: the current stream waits for them, and their tensors stay until then."""
    gpu = running.require().gpu
    assert gpu is not None
    current = backend.current_stream(gpu.device)
    for op in ops:
        kept = op.join(current)
        backend.joined(op.stream)
        users = {op.stream, current} - {op.submission_stream}
        for tensor in kept or ():
            if backend.holds(tensor):
                for stream in users:
                    backend.record(tensor, stream, gpu.device)


def received(op: Op) -> Tensor:
    """The output of an allgather or alltoall: uint8, one dimension.

    A copy in memory of torch's: of anybody else's memory it does not know which streams use it.
    """
    gpu = running.require().gpu
    assert gpu is not None
    stream = backend.current_stream(gpu.device)
    output = backend.empty((op.output_bytes,), torch.uint8, gpu.device)
    op.take_output(output.data_ptr(), stream)
    backend.joined(stream)
    return output


def merge_rows(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of equal index summed in the order in which they come; ascending indices, and their rows.

    Args:
        rows: int64 [n], values: floating point [n, ...], both on this rank's GPU.
    """
    gpu = attached(backend.index(values))
    ordered, order = torch.sort(rows, stable=True)
    merged, counts = torch.unique_consecutive(ordered, return_counts=True)
    first = torch.zeros(merged.numel() + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(counts, 0, out=first[1:])
    values = values.contiguous()
    out = backend.empty((merged.numel(), *values.shape[1:]), values.dtype, backend.index(values))
    width = values[0].numel() if values.shape[0] else 0
    stream = backend.current_stream(gpu.device)
    if width:
        gpu.merge_rows(
            out.data_ptr(), values.data_ptr(), order.data_ptr(), first.data_ptr(), merged.numel(), width,
            dtypes.CODES[values.dtype], 1.0, stream,
        )  # fmt: skip
    backend.joined(stream)
    return merged, out
