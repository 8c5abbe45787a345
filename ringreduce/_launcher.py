"""What the environment says about how many ranks were started, to compare with MPI's size.

A program started by the wrong launcher (Open MPI's library under MPICH's mpiexec) gets
size 1 on every rank without a word: each trains alone. This is where that is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping

from ringreduce.errors import RingreduceError

# Set for each rank by Open MPI; by Hydra (MPICH, Intel MPI) and Slurm's PMI; by srun's steps.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
# Only a lower bound of the size.
_LOCAL_SIZES = ("MPI_LOCALNRANKS",)
_RANKS = ("PMIX_RANK",)


def launched_sizes(environ: Mapping[str, str]) -> dict[str, int]:
    """The sizes that launchers left in `environ`, by variable."""
    values = {name: environ.get(name, "") for name in _SIZES}
    return {name: int(value) for name, value in values.items() if value.isdigit()}


def _lower_bounds(environ: Mapping[str, str]) -> dict[str, int]:
    bounds = {n: int(environ[n]) for n in _LOCAL_SIZES if environ.get(n, "").isdigit()}
    bounds |= {n: int(environ[n]) + 1 for n in _RANKS if environ.get(n, "").isdigit()}
    return bounds


def check_size(size: int, environ: Mapping[str, str], explanation: str) -> None:
    """RingreduceError with both sizes if a launcher started more ranks than `size`.

    Several launchers' variables may be there (a job inside a job): one that agrees is enough.
    """
    sizes = launched_sizes(environ)
    if size in sizes.values():
        return
    for variable, launched in (sizes or _lower_bounds(environ)).items():
        if launched > size:
            raise RingreduceError(
                f"the launcher started {launched} ranks ({variable}), but this process sees a "
                f"world of size {size}: {explanation}"
            )
