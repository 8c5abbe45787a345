"""What a result was measured on: for JSON, and for the line above a table."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

from ringreduce import _core, _version


def describe() -> dict[str, Any]:
    """Hardware and versions of this host. MPI is initialised already."""
    from mpi4py import MPI
    from mpi4py import __version__ as mpi4py_version

    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory("MemTotal"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "mpi": " ".join(MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0").split()),
        "mpi4py": mpi4py_version,
        "ringreduce": _version.__version__,
        "kernels": _core.kernels_name(),
    }


def cpu_model() -> str:
    """As /proc/cpuinfo names it; the architecture where it does not."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def busy(seconds: float = 0.5) -> float:
    """The share of all cores that programs use while this one sleeps, 0 to 1."""
    before = _cpu_times()
    time.sleep(seconds)
    spent = [after - earlier for earlier, after in zip(before, _cpu_times(), strict=True)]
    idle = spent[3] + spent[4]  # idle, and waiting for a disk
    return 1 - idle / sum(spent) if sum(spent) else 0.0


def _cpu_times() -> list[int]:
    return [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]


def memory(field: str) -> int:
    """Bytes, of a field of /proc/meminfo."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0
