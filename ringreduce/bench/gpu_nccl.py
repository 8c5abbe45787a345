"""NCCL called directly, through ctypes: what a submission of ringreduce is compared with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

INT_MIN = -(1 << 31)
SUM = 0
DTYPES = {torch.float32: 7, torch.float16: 6, torch.bfloat16: 9, torch.float64: 8}


class _UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_char * 128)]


class _Config(ctypes.Structure):
    """ncclConfig_t of NCCL 2.14; newer libraries see by `version` that there is no more of it."""

    _fields_ = [
        ("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int), ("cga_cluster_size", ctypes.c_int),
    ]  # fmt: skip


class NcclError(Exception):
    """NCCL's text for what it returned."""


class DirectNccl:
    """A communicator of NCCL's own over all ranks. Collective.

    Args:
        path: of the libnccl that the process uses.
        share: hands rank 0's bytes to all ranks.
    """

    def __init__(self, path: str, rank: int, size: int, share: Callable[[bytes], bytes]) -> None:
        self._nccl = ctypes.CDLL(path)
        self._nccl.ncclGetErrorString.restype = ctypes.c_char_p
        self._nccl.ncclAllReduce.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p,
            ctypes.c_void_p,
        ]  # fmt: skip
        unique = _UniqueId()
        if rank == 0:
            self._check(self._nccl.ncclGetUniqueId(ctypes.byref(unique)))
        unique = _UniqueId.from_buffer_copy(share(bytes(unique)))
        config = _Config(ctypes.sizeof(_Config), 0xCAFEBEEF, 21400, 1, INT_MIN)
        self._communicator = ctypes.c_void_p()
        self._check(
            self._nccl.ncclCommInitRankConfig(
                ctypes.byref(self._communicator), ctypes.c_int(size), unique, ctypes.c_int(rank), ctypes.byref(config)
            )
        )

    def all_reduce(self, tensor: torch.Tensor, stream: int) -> Callable[[], Any]:
        """A call that sums `tensor` over the ranks in place, on `stream`; it returns ncclResult_t."""
        function, communicator, address = self._nccl.ncclAllReduce, self._communicator, tensor.data_ptr()
        count, dtype = tensor.numel(), DTYPES[tensor.dtype]
        return lambda: function(address, address, count, dtype, SUM, communicator, stream)

    def close(self) -> None:
        """Collective, with nothing of it on the GPU."""
        self._check(self._nccl.ncclCommDestroy(self._communicator))

    def _check(self, result: int) -> None:
        if result != 0:
            raise NcclError(self._nccl.ncclGetErrorString(result).decode())
