"""GPUs for tests: chosen CPU tensors are "on a GPU", whose streams are the threads of the double of CUDA.

torch's own operations on them run at once, on the host. Where CUDA would order torch's next
kernel behind a stream, `joined` waits for the double's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ringreduce._ops import gpus, plain
from ringreduce._ops.gpus import Cuda


class FakeCuda(Cuda):
    """In the place of `ringreduce._ops.gpus.backend`.

    `device` is the GPU of every tensor made here, `stream` the current one.
    """

    def __init__(self, library: str, device: int) -> None:
        self.double = ctypes.CDLL(library)
        self.double.rr_double_misuse_text.restype = ctypes.c_char_p
        self.double.rr_double_trace_stop.restype = ctypes.c_char_p
        self.double.rr_double_stream_create.restype = ctypes.c_void_p
        self.stream = 0
        self.recorded: list[tuple[int, int]] = []  # (address of the tensor, stream)
        self.device = device
        self._devices: dict[int, int] = {}  # address of a storage -> GPU
        self._kept: list[object] = []  # addresses stay taken for as long as this object lives

    def cuda(self, tensor: Tensor, device: int | None = None) -> Tensor:
        """The tensor, which counts as on the GPU from here on (a tensor without elements: a new one)."""
        if tensor.numel() == 0:
            tensor = tensor.new_empty(1)[:0].view(tensor.shape)
        self._devices[tensor.untyped_storage().data_ptr()] = self.device if device is None else device
        self._kept.append(tensor.untyped_storage())
        return tensor

    def module(self, module: torch.nn.Module) -> torch.nn.Module:
        """A module with all its parameters on the GPU."""
        for tensor in module.parameters():
            self.cuda(tensor.data)
        return module

    def holds(self, tensor: Tensor) -> bool:
        return tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() in self._devices

    def take_over(self) -> FakeCuda:
        """For the rest of the process."""
        gpus.backend = self
        plain._call = self.refusing(plain._call)
        return self

    def refusing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`ringreduce._ops.plain._call` as it is where tensors are on a real GPU, which the core sees by itself."""
        return lambda kind, tensor, *rest: (
            None if tensor is not None and self.holds(tensor) else call(kind, tensor, *rest)
        )

    def index(self, tensor: Tensor) -> int:
        return self._devices[tensor.untyped_storage().data_ptr()]

    def current_stream(self, index: int) -> int:
        return self.stream

    def record(self, tensor: Tensor, stream: int, index: int) -> None:
        self._kept.append(tensor)
        self.recorded.append((tensor.data_ptr(), stream))

    def free_recorded(self) -> None:
        """What torch's allocator does when the tensors die: it records events on the streams that have used them."""
        for stream in {stream for _, stream in self.recorded}:
            self.joined(stream)
        self.recorded.clear()

    def new_stream(self) -> int:
        """A stream of torch's."""
        self.double.rr_double_use_device(self.device)
        return int(self.double.rr_double_stream_create())

    def joined(self, stream: int) -> None:
        self.double.rr_double_use_device(self.device)
        assert self.double.rr_double_stream_synchronize(ctypes.c_void_p(stream)) == 0

    def to_host_later(self, flag: Tensor) -> Callable[[], bool]:
        value = bool(flag)
        return lambda: value

    def to_host(self, tensor: Tensor) -> Tensor:
        self.joined(self.stream)
        return tensor.clone()

    def from_host(self, tensor: Tensor, source: Tensor) -> None:
        self.joined(self.stream)
        tensor.copy_(source)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, index: int | None = None) -> Tensor:
        return self.cuda(torch.empty(tuple(shape), dtype=dtype))

    def empty_like(self, tensor: Tensor) -> Tensor:
        return self.cuda(torch.empty_like(tensor))

    def misuses(self) -> str:
        """What real CUDA and NCCL would have punished."""
        return str(self.double.rr_double_misuse_text().decode())

    def count(self, function: str) -> int:
        """Calls so far; "host_sync": those that made the host wait for the GPU."""
        return int(self.double.rr_double_count(function.encode()))

    def fail(self, function: str, error: int = 0, skip: int = 0) -> None:
        """A call of the function fails once, after `skip` calls that do not (tests/doubles/control.h)."""
        self.double.rr_double_fail(function.encode(), error, ctypes.c_long(skip), -1)

    @contextmanager
    def trace(self, lines: list[str]) -> Iterator[None]:
        """The calls of the doubles' functions within, each "FUNCTION device D stream S"."""
        self.double.rr_double_trace_start()
        yield
        lines += self.double.rr_double_trace_stop().decode().splitlines()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Within, the current stream (not the default one) captures a CUDA graph."""
        stream = ctypes.c_void_p(self.stream)
        self.double.rr_double_capture_begin(stream)
        yield
        self.double.rr_double_capture_end(stream)

    def set(self, name: str, value: int) -> None:
        """A setting of the doubles, the same on all ranks."""
        self.double.rr_double_set(name.encode(), ctypes.c_long(value))
