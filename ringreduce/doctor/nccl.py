"""NCCL called directly, through ctypes: what `doctor` tries, and what `benchmarks/gpu.py` compares a submission with.

The core calls NCCL by itself (csrc/gpu/library.h).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

SUM, AVERAGE = 0, 4
DTYPES = {torch.float32: 7, torch.float16: 6, torch.bfloat16: 9, torch.float64: 8}
_NAME = "libnccl.so.2"
_INT_MIN = -(1 << 31)  # "as NCCL wants it", in a configuration


class Found(NamedTuple):
    """The NCCL of this process, or why there is none."""

    path: str
    version: int  # such as 22703; 0 where there is none
    problem: str


class NcclError(Exception):
    """NCCL's texts for what a call returned."""


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * 128)]


class _Config(ctypes.Structure):
    """ncclConfig_t of NCCL 2.14; newer libraries see by `version` that there is no more of it."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int), ("cga_cluster_size", ctypes.c_int),
    ]  # fmt: skip


def find(candidates: Sequence[str], wanted: str) -> Found:
    """Look for NCCL as csrc/gpu/library.cc does: what is loaded already comes first, as a process has one only.

    Args:
        candidates: paths to try before the system's library.
        wanted: RINGREDUCE_NCCL; nothing else is tried, if it is not empty.
    """
    paths = [wanted] if wanted else [*candidates, _NAME]
    problems = []
    for name, mode in [(_NAME, os.RTLD_NOLOAD), *((path, 0) for path in paths)]:
        try:
            nccl = ctypes.CDLL(name, mode)
            version = ctypes.c_int()
            nccl.ncclGetVersion(ctypes.byref(version))
        except (OSError, AttributeError) as error:
            if mode != os.RTLD_NOLOAD:
                problems.append(str(error))
            continue
        return Found(_file_of(nccl.ncclGetVersion), version.value, "")
    return Found("", 0, "; ".join(problems))


def show_version(number: int) -> str:
    """NCCL's number as text: 22703 is 2.27.3, and 2708, as it was written up to 2.8, is 2.7.8."""
    major = 10000 if number >= 10000 else 1000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _file_of(function: Any) -> str:
    """The library that a function is in."""
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *rest = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in span.split("-"))
        if begin <= address < end:
            return rest[-1]
    return ""


class Communicator:
    """A communicator of NCCL's own over some ranks, on the current GPU; destroyed at the end of a `with`. Collective.

    Args:
        path: of the libnccl that the process uses.
        share: hands rank 0's bytes to all ranks.
    """

    def __init__(self, path: str, rank: int, size: int, share: Callable[[bytes], bytes]) -> None:
        self._nccl = ctypes.CDLL(path)
        self._nccl.ncclGetErrorString.restype = self._nccl.ncclGetLastError.restype = ctypes.c_char_p
        self._all_reduce = self._nccl.ncclAllReduce
        self._all_reduce.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
            ctypes.c_void_p,
        ]  # fmt: skip
        self._communicator = ctypes.c_void_p()
        unique = _UniqueId()
        if rank == 0:
            self.check("ncclGetUniqueId", self._nccl.ncclGetUniqueId(ctypes.byref(unique)))
        unique = _UniqueId.from_buffer_copy(share(bytes(unique)))
        config = _Config(ctypes.sizeof(_Config), 0xCAFEBEEF, 21400, 1, _INT_MIN)
        self.check(
            "ncclCommInitRankConfig",
            self._nccl.ncclCommInitRankConfig(
                ctypes.byref(self._communicator), ctypes.c_int(size), unique, ctypes.c_int(rank), ctypes.byref(config)
            ),
        )

    def all_reduce(self, source: torch.Tensor, result: torch.Tensor, op: int, stream: int) -> Callable[[], Any]:
        """A call that reduces `source` over the ranks into `result` on `stream`; it returns ncclResult_t."""
        function, communicator = self._all_reduce, self._communicator
        sent, received = source.data_ptr(), result.data_ptr()
        count, dtype = source.numel(), DTYPES[source.dtype]
        return lambda: function(sent, received, count, dtype, op, communicator, stream)

    def check(self, function: str, result: int) -> None:
        """Raise NcclError for what `function` returned, unless that is success."""
        if result != 0:
            text = self._nccl.ncclGetErrorString(result).decode()
            last = self._nccl.ncclGetLastError(self._communicator) or b""
            raise NcclError(f"{function}: {text}" + (f" ({last.decode()})" if last else ""))

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, error: object, *_rest: object) -> None:
        """Collective, with nothing of it on the GPU; after an error it is aborted, which waits for nobody."""
        if error is not None:
            self._nccl.ncclCommAbort(self._communicator)
        else:
            self.check("ncclCommDestroy", self._nccl.ncclCommDestroy(self._communicator))
