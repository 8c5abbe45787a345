"""Compression of what goes over the network: gradients and allreduce inputs as 16-bit floats.

Inside one host the ranks meet in shared memory, where converting costs more than it saves.
So compression is applied only where the process set spans several hosts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet


class Compressor:
    """Interface of a compressor: a smaller tensor to send, and the way back."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        """Returns the tensor to send, and whatever `decompress` needs."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: Tensor, ctx: Any) -> Tensor:
        """Returns the received tensor in the original dtype."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Sends tensors as they are."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, Any]:
        return tensor, None

    @staticmethod
    def decompress(tensor: Tensor, ctx: Any) -> Tensor:
        return tensor


class _CastCompressor(Compressor):
    """Sends wider floats as a 16-bit type; other tensors as they are."""

    wire: torch.dtype

    @classmethod
    def compress(cls, tensor: Tensor) -> tuple[Tensor, Any]:
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor.to(cls.wire), tensor.dtype
        return tensor, None

    @classmethod
    def decompress(cls, tensor: Tensor, ctx: Any) -> Tensor:
        return tensor if ctx is None else tensor.to(ctx)


class FP16Compressor(_CastCompressor):
    """Sends float32 and float64 as float16 (largest value 65504)."""

    wire = torch.float16


class BF16Compressor(_CastCompressor):
    """Sends float32 and float64 as bfloat16 (the range of float32, 8 bits of precision)."""

    wire = torch.bfloat16


class Compression:
    """The compressors to choose from: `none`, `fp16`, `bf16`."""

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


def effective(compression: type[Compressor], process_set: ProcessSet) -> type[Compressor]:
    """`compression`, or none where the set is on one host."""
    host_of = running.require().host_of
    hosts = {host_of[rank] for rank in process_set.registered_ranks()}
    return compression if len(hosts) > 1 else NoneCompressor
