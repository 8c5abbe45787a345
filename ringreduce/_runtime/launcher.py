"""What launchers leave in the environment of a rank, and what init concludes from it.

A program started by the wrong launcher (Open MPI's library under MPICH's mpiexec, torchrun)
gets size 1 on every rank without a word: each trains alone. And a program that a rank starts
inherits the rank's variables, by which MPI takes it for that rank. This is where both are noticed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, MutableMapping

from ringreduce.errors import RingreduceError

# Set for each rank by Open MPI; by Hydra (MPICH, Intel MPI), Slurm's PMI and PALS; by srun's steps; by
# Flux, jsrun and MVAPICH's mpirun_rsh; by horovodrun.
_SIZES = (
    "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS",
    "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE", "MPIRUN_NPROCS", "HOROVOD_SIZE",
)  # fmt: skip
# Only a lower bound of the size.
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE")
_RANKS = ("PMIX_RANK", "PMI_RANK", "PALS_RANKID", "ALPS_APP_PE")
# What a launcher of torch gives each process. One alone may be somebody's own.
_TORCH = ("WORLD_SIZE", "RANK", "MASTER_ADDR")
# Slurm numbers from here on steps that are none: the batch script, the shell of salloc.
_FIRST_SPECIAL_STEP = 0xFFFFFF00

# By these MPI knows which rank a process is.
_IDENTITY = (
    "PMIX_NAMESPACE", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMI_FD", "PMI_PORT", "PMI_JOBID",
    "PALS_APID", "PALS_RANKID", "FLUX_JOB_ID", "FLUX_TASK_RANK", "MPIRUN_RANK",
)  # fmt: skip
_MARK = "RINGREDUCE_RANK_PROCESS"


def launched_sizes(environ: Mapping[str, str]) -> dict[str, int]:
    """The sizes that launchers left in `environ`, by variable."""
    sizes = {name: int(environ[name]) for name in _SIZES if environ.get(name, "").isdigit()}
    if "SLURM_STEP_NUM_TASKS" not in sizes and _in_a_step(environ):
        sizes["SLURM_NTASKS"] = int(environ["SLURM_NTASKS"])
    # Several launchers of a kind: of torch, only where none that MPI understands was used.
    if not sizes and all(environ.get(name) for name in _TORCH) and environ["WORLD_SIZE"].isdigit():
        sizes["WORLD_SIZE"] = int(environ["WORLD_SIZE"])
    return sizes


def _in_a_step(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process. In the shell of salloc or sbatch SLURM_NTASKS is set as well."""
    step, tasks = environ.get("SLURM_STEP_ID", ""), environ.get("SLURM_NTASKS", "")
    return step.isdigit() and int(step) < _FIRST_SPECIAL_STEP and tasks.isdigit() and "SLURM_PROCID" in environ


def _lower_bounds(environ: Mapping[str, str]) -> dict[str, int]:
    bounds = {n: int(environ[n]) for n in _LOCAL_SIZES if environ.get(n, "").isdigit()}
    bounds |= {n: int(environ[n]) + 1 for n in _RANKS if environ.get(n, "").isdigit()}
    return bounds


def check_size(size: int, environ: Mapping[str, str], explanation: str) -> None:
    """RingreduceError with both sizes if a launcher started more ranks than `size`.

    Several launchers' variables may be there (a job inside a job): one that agrees is enough,
    but for torchrun. It starts processes for itself, often as the one task of an srun.
    """
    elastic = environ.get("WORLD_SIZE", "") if "TORCHELASTIC_RUN_ID" in environ else ""
    if size == 1 and elastic.isdigit() and int(elastic) > 1:
        raise _too_small(size, int(elastic), "WORLD_SIZE of torchrun", explanation)
    sizes = launched_sizes(environ)
    if size in sizes.values():
        return
    for variable, launched in (sizes or _lower_bounds(environ)).items():
        if launched > size:
            raise _too_small(size, launched, variable, explanation)


def _too_small(size: int, launched: int, variable: str, explanation: str) -> RingreduceError:
    return RingreduceError(
        f"the launcher started {launched} ranks ({variable}), but this process sees a "
        f"world of size {size}: {explanation}; to run alone, unset {variable.split()[0]}"
    )


def mark(environ: MutableMapping[str, str]) -> None:
    """Leave word in `environ` which process is the rank that its variables speak of."""
    if identity := _identity(environ):
        environ[_MARK] = f"{os.getpid()} {_socket(environ)} {identity}"


def check_mark(environ: Mapping[str, str]) -> None:
    """RingreduceError in a process that has inherited a rank's variables and is not that rank.

    A launcher that was started by a rank gives its own ranks variables of their own.
    """
    pid, socket, identity = (environ.get(_MARK, "").split(" ", 2) + ["", ""])[:3]
    if not identity or pid == str(os.getpid()) or identity != _identity(environ):
        return
    # Hydra numbers the ranks and sockets of every job alike, but a job inside has other sockets.
    if socket and _socket(environ) not in ("", socket):
        return
    names = ", ".join(name for name in _IDENTITY if environ.get(name))
    raise RingreduceError(
        f"process {os.getpid()} was started by process {pid}, a rank of an MPI job, and has inherited the variables "
        f"by which MPI knows that rank ({names}): MPI would take the one for the other. Start it by a launcher of "
        "its own (mpirun -np 1 python ...); or, to run alone, without all variables that begin with PMI, OMPI_, "
        "PRTE_, HYD or MPI_LOCAL"
    )


def _identity(environ: Mapping[str, str]) -> str:
    return " ".join(f"{name}={environ[name]}" for name in _IDENTITY if environ.get(name))


def _socket(environ: Mapping[str, str]) -> str:
    """Which socket PMI_FD is here; "" for none."""
    with contextlib.suppress(ValueError, OSError):
        info = os.fstat(int(environ.get("PMI_FD", "")))
        return str(info.st_ino) if stat.S_ISSOCK(info.st_mode) else ""
    return ""
