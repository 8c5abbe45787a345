"""The GPUs of this machine, as NVIDIA's management library (nvidia-ml-py) tells. Touches no CUDA.

Functions take the module `pynvml`, or what looks like it. Everything here is optional: without
nvidia-ml-py or a driver there is a reason, and no list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_WORD = 64  # bits; affinities come as words


class Gpu(NamedTuple):
    """A GPU, or an instance of a partitioned one (MIG)."""

    number: int  # among the machine's GPUs by PCI id; an instance has its GPU's
    uuid: str  # "GPU-..." or "MIG-..."
    name: str
    pci: str  # "0000:65:00.0"
    cores: frozenset[int]  # near it; empty where unknown
    nodes: tuple[int, ...]  # NUMA nodes near it; empty where unknown
    memory_bytes: int  # 0 where unknown

    def __str__(self) -> str:
        return f"GPU {self.number} ({self.name}, {self.pci})"


def load() -> tuple[Any, str]:
    """pynvml, initialised, or None and the reason."""
    try:
        import pynvml
    except ImportError:
        return None, "nvidia-ml-py is not installed: pip install 'ringreduce[gpu]'"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML cannot be used: {error}"
    return pynvml, ""


def read(nvml: Any) -> list[Gpu]:
    """All GPUs of the machine by PCI id, each followed by its instances."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = Gpu(
            index,
            _text(nvml.nvmlDeviceGetUUID(handle)),
            _text(nvml.nvmlDeviceGetName(handle)),
            pci_id(_text(nvml.nvmlDeviceGetPciInfo(handle).busId)),
            _or(frozenset(), _cores, nvml, handle),
            tuple(sorted(_or(frozenset(), _nodes, nvml, handle))),
            _or(0, _memory, nvml, handle),
        )
        slots = (_or(None, _instance, nvml, handle, gpu, i) for i in range(_or(0, _most_instances, nvml, handle)))
        found += [gpu, *(instance for instance in slots if instance is not None)]
    return found


def nvlinks(nvml: Any, gpus: Sequence[Gpu]) -> dict[int, list[int]]:
    """For each GPU's number the numbers of those that it reaches over NVLink."""
    handles = {gpu.number: nvml.nvmlDeviceGetHandleByIndex(gpu.number) for gpu in gpus}
    return {a: [b for b in handles if b != a and _or(False, _linked, nvml, handles[a], handles[b])] for a in handles}


def pci_id(text: str) -> str:
    """A PCI id in the form that Linux writes: "0000:65:00.0" for NVML's "00000000:65:00.0"."""
    domain, _, rest = text.partition(":")
    return f"{int(domain, 16):04x}:{rest.lower()}"


def _cores(nvml: Any, handle: Any) -> frozenset[int]:
    words = -(-os.sysconf("SC_NPROCESSORS_CONF") // _WORD)
    return _bits(nvml.nvmlDeviceGetCpuAffinity(handle, words))


def _nodes(nvml: Any, handle: Any) -> frozenset[int]:
    return _bits(nvml.nvmlDeviceGetMemoryAffinity(handle, 1, nvml.NVML_AFFINITY_SCOPE_NODE))


def _memory(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)


def _most_instances(nvml: Any, handle: Any) -> int:
    return int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))


def _instance(nvml: Any, handle: Any, gpu: Gpu, number: int) -> Gpu:
    part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
    uuid, name = _text(nvml.nvmlDeviceGetUUID(part)), _text(nvml.nvmlDeviceGetName(part))
    return gpu._replace(uuid=uuid, name=name, memory_bytes=_or(0, _memory, nvml, part))


def _linked(nvml: Any, one: Any, other: Any) -> bool:
    return bool(nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK) == nvml.NVML_P2P_STATUS_OK)


def _bits(words: Sequence[int]) -> frozenset[int]:
    return frozenset(_WORD * i + bit for i, word in enumerate(words) for bit in range(_WORD) if word >> bit & 1)


def _or(instead: Any, ask: Callable[..., Any], nvml: Any, *arguments: Any) -> Any:
    """What `ask` gives; `instead` where the driver, or this version of pynvml, cannot say."""
    try:
        return ask(nvml, *arguments)
    except (nvml.NVMLError, AttributeError):
        return instead


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)  # bytes up to version 11
