"""The GPU that is measured: found or not, described, and what a benchmark needs of it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ringreduce as rr
from ringreduce._core import Gpu
from ringreduce.doctor.nccl import show_version

CUDA_LIBRARY = Path(rr.__file__).with_name("libringreduce_cuda.so")
IDLE_BYTES = 256 << 20  # read to keep the GPU busy, and larger than any L2 cache
SHARING_NCCL = 23000  # the first NCCL in which two ranks may use one GPU
SHARING = "NCCL_MULTI_RANK_GPU_ENABLE"  # what allows them to


class Found(NamedTuple):
    """What there is to measure with, and everything that is missing; found without using a GPU."""

    gpus: int
    nccl: int  # version of torch's, such as 22703; 0 where it has none
    memory: int  # bytes of the first GPU
    missing: list[str]


def find() -> Found:
    """Look for our CUDA library, a driver, a GPU, and a torch that can use it."""
    probed: dict[str, Any] = Gpu.probe(str(CUDA_LIBRARY))
    missing = []
    if probed["problem"]:
        missing.append(_explain(probed))
    elif not probed["devices"]:
        missing.append("CUDA finds no GPU")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is built without CUDA")
    elif not torch.cuda.is_available():
        missing.append(f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU")
    if missing:
        return Found(0, 0, 0, missing)
    memory = torch.cuda.get_device_properties(0).total_memory
    return Found(torch.cuda.device_count(), _torch_nccl(), memory, [])


def _explain(probed: Mapping[str, Any]) -> str:
    """What is wrong with the library itself, which says so, or with what it found."""
    problem = str(probed["problem"])
    return f"CUDA finds no GPU: {problem}" if probed["runtime"] else problem


def _torch_nccl() -> int:
    if not torch.distributed.is_nccl_available():
        return 0
    nccl: Any = torch.cuda.nccl
    major, minor, patch = nccl.version()[:3]
    return 10000 * int(major) + 100 * int(minor) + int(patch)


@dataclass
class GpuDevice:
    """One GPU of CUDA's, torch's current one.

    Args:
        gpu: the core's.
        torch: where torch has its memory.
    """

    gpu: Gpu
    torch: torch.device

    @classmethod
    def of_rank(cls, local_rank: int) -> GpuDevice:
        """The GPU of a rank of this machine: ranks take turns where there are more than GPUs."""
        index = local_rank % torch.cuda.device_count()
        torch.cuda.set_device(index)
        return cls(Gpu(str(CUDA_LIBRARY), _nccl_candidates(), index), torch.device("cuda", index))

    def describe(self) -> dict[str, Any]:
        """Name and versions, for JSON."""
        probed: dict[str, Any] = Gpu.probe(str(CUDA_LIBRARY))
        properties = torch.cuda.get_device_properties(self.torch)
        return {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_bytes": properties.total_memory,
            "gpu_l2_bytes": self.l2_bytes,
            "driver": _driver_version(),
            "driver_cuda": probed["driver"],
            "cuda_runtime": probed["runtime"],
            "torch_cuda": torch.version.cuda,
            "nccl": show_version(self.gpu.nccl_version) if self.gpu.nccl_version else None,
            "nccl_path": self.gpu.nccl_path,
            "nccl_problem": self.gpu.nccl_problem,
        }

    def first_operation(self) -> None:
        """The library's first on this GPU, which connects the ranks. Collective."""
        rr.allreduce(torch.zeros(1, device=self.torch))

    @property
    def stream(self) -> int:
        """torch's current one."""
        return torch.cuda.current_stream(self.torch).cuda_stream

    @cached_property
    def l2_bytes(self) -> int:
        """Of the L2 cache."""
        return int(torch.cuda.get_device_properties(self.torch).L2_cache_size)

    @property
    def count(self) -> int:
        """GPUs of this machine."""
        return torch.cuda.device_count()

    def peak_memory(self) -> int:
        """Most bytes that torch had allocated."""
        return torch.cuda.max_memory_allocated(self.torch)

    def synchronize(self) -> None:
        """Wait for everything on the GPU."""
        torch.cuda.synchronize(self.torch)

    def mark(self) -> Any:
        """The point of the current stream at which all is done that is queued now."""
        make: Any = torch.cuda.Event
        event = make(enable_timing=True)
        event.record()
        return event

    def passed(self, mark: Any) -> bool:
        """Whether the GPU has got there."""
        return bool(mark.query())

    def between(self, begin: Any, end: Any) -> float:
        """Seconds from one mark to the other, for which the host waits."""
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def hold(self, seconds: float) -> None:
        """Keep the current stream busy for about so long."""
        for _ in range(max(1, round(seconds / self._read_seconds))):
            self._idle.sum()

    @cached_property
    def _idle(self) -> Tensor:
        return torch.zeros(IDLE_BYTES // 4, device=self.torch)

    @cached_property
    def _read_seconds(self) -> float:
        """Of the memory that `hold` reads."""
        seconds = 0.0
        for _ in range(2):  # the first read loads the kernel
            begin = self.mark()
            self._idle.sum()
            seconds = self.between(begin, self.mark())
        return seconds


def gpu_line(info: dict[str, Any]) -> str:
    """The line above a table: what was measured on."""
    driver = f"driver {info['driver']}" if info["driver"] else f"driver of CUDA {_cuda(info['driver_cuda'])}"
    several = f"{info['gpus']} x " if info["gpus"] > 1 else ""
    nccl = f"NCCL {info['nccl']}" if info["nccl"] else "no NCCL"
    return (
        f"{several}{info['gpu']}, {driver}, CUDA runtime {_cuda(info['cuda_runtime'])} "
        f"(torch's {info['torch_cuda']}), {nccl}"
    )


def _cuda(number: int) -> str:
    """13000 is 13.0."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _driver_version() -> str | None:
    """As the kernel's driver says; None where it does not."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None


def _nccl_candidates() -> list[str]:
    """Where pip puts NCCL. torch has loaded it long before, where it has its own."""
    try:
        spec = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return []
    roots = spec.submodule_search_locations if spec else None
    return [os.path.join(root, "lib", "libnccl.so.2") for root in roots or ()]
