"""What one rank finds: plain dictionaries, for people and for JSON."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ringreduce import _core, _version
from ringreduce._ops import gpus
from ringreduce._placement import nvml
from ringreduce._runtime import launcher, mpi
from ringreduce.doctor import nccl

Facts = dict[str, Any]


def of_machine() -> Facts:
    """Versions and libraries, MPI, limits, GPUs and settings, as this rank sees them."""
    return {name: _or_problem(ask) for name, ask in SECTIONS.items()}


def of_rank() -> Facts:
    """Who and where this rank is."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": sorted(os.sched_getaffinity(0)),
        "launcher": launcher.launched_sizes(os.environ),
    }


def gpu_in_torch() -> str:
    """Why torch has no GPU here; "" if it has one."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def _or_problem(ask: Callable[[], Facts]) -> Facts:
    """One part that fails leaves the others readable."""
    try:
        return ask()
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def _versions() -> Facts:
    return {
        "ringreduce": _version.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torch's CUDA": torch.version.cuda or "none",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _libraries() -> Facts:
    probe = _core.Gpu.probe(str(gpus.LIBRARY))
    found = nccl.find(gpus.nccl_candidates(), dict(_core.setting_texts())["RINGREDUCE_NCCL"])
    return {
        "core": _core.__file__,
        "kernels": _core.kernels_name(),
        "CUDA library": probe["library"],
        "CUDA library's problem": probe["problem"],
        "CUDA runtime": _cuda_version(probe["runtime"]),
        "CUDA driver": _cuda_version(probe["driver"]),
        "NCCL": nccl.show_version(found.version) if found.version else "none",
        "NCCL library": found.path,
        "NCCL library's problem": found.problem,
    }


def _cuda_version(number: Any) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _mpi_facts() -> Facts:
    MPI, reason = mpi.load()
    if MPI is None:
        return {"problem": reason}
    import mpi4py

    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    return {
        "mpi4py": mpi4py.__version__,
        "library": MPI.Get_library_version().split("\n")[0].strip("\0 "),
        "path": _mapped(r"/lib(p?mpi|mpich|mpi_abi)[^/]*\.so[^/]*$") or "unknown",
        "thread level": levels.get(MPI.Query_thread(), "multiple"),
        "mpirun": shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}") or "none",
    }


def _mapped(pattern: str) -> str:
    """The first library of this process whose path matches."""
    paths = (line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line)
    return next((path for path in paths if re.search(pattern, path)), "")


def _limits() -> Facts:
    shm = os.statvfs("/dev/shm")
    return {
        "/dev/shm": f"{shm.f_frsize * shm.f_bavail >> 20} MiB free of {shm.f_frsize * shm.f_blocks >> 20}",
        "open files": _limit(resource.RLIMIT_NOFILE),
        "locked memory": _limit(resource.RLIMIT_MEMLOCK),
        "cgroup memory": _cgroup("memory.max"),
        "cgroup cores": _cgroup("cpu.max"),
    }


def _limit(which: int) -> str:
    soft = resource.getrlimit(which)[0]
    return "unlimited" if soft == resource.RLIM_INFINITY else str(soft)


def _cgroup(name: str) -> str:
    """Of this process's cgroup, version 2."""
    own = re.search(r"^0::(.+)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    path = Path("/sys/fs/cgroup") / (own[1].lstrip("/") if own else "") / name
    return path.read_text().strip() if path.is_file() else "no limit"


def _gpus() -> Facts:
    library, problem = nvml.load()
    if library is None:
        return {"none": gpu_in_torch() or problem}
    try:
        found = nvml.read(library)
        links = nvml.nvlinks(library, [gpu for gpu in found if gpu.uuid.startswith("GPU-")])
    finally:
        library.nvmlShutdown()
    return {
        str(gpu): f"{gpu.memory_bytes >> 20} MiB, NUMA {list(gpu.nodes) or 'unknown'}, "
        f"NVLink to {links.get(gpu.number) or 'none'}"
        for gpu in found
    }


SECTIONS: dict[str, Callable[[], Facts]] = {
    "versions": _versions,
    "libraries": _libraries,
    "MPI": _mpi_facts,
    "GPUs": _gpus,
    "limits": _limits,
    "settings": lambda: dict(_core.setting_texts()),
}
