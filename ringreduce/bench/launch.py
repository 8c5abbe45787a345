"""Starting this very command under mpirun, where no launcher has done so yet.

    ringreduce bench allreduce --np 4
      └─exec─► mpirun -np 4 python -m ringreduce bench allreduce --np 4     (4 ranks)

The launching process becomes mpirun, so signals and the exit status need no care. A benchmark
that takes several jobs stays and runs them, one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ringreduce._runtime import launcher

RINGREDUCE = ("-m", "ringreduce")
# What Open MPI (5, then 4) needs where the user is root and where there are more ranks than
# cores; and ranks that are not bound may use all cores, as a single rank would. MPICH and
# Intel MPI need nothing and read none of it.
_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def launched_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks a launcher has started, or None if this process was started by hand."""
    sizes = launcher.launched_sizes(environ)
    if sizes.get("SLURM_STEP_NUM_TASKS") == 1:
        del sizes["SLURM_STEP_NUM_TASKS"]  # an interactive shell of an allocation is such a step
    return next(iter(sizes.values()), None)


def launched_rank(environ: Mapping[str, str] = os.environ) -> int:
    """This process's rank as the launcher says, 0 without one: who speaks before MPI is up."""
    return next((int(environ[name]) for name in _RANKS if environ.get(name, "").isdigit()), 0)


def local_ranks(size: int, environ: Mapping[str, str] = os.environ) -> int:
    """How many of `size` ranks share this host, as far as the launcher says."""
    return next((int(environ[name]) for name in _LOCAL_SIZES if environ.get(name, "").isdigit()), size)


def find_mpirun() -> str | None:
    """The mpirun that belongs to this Python (mpi4py finds its library in the same place), else PATH's."""
    beside = Path(sys.executable).parent
    return next(
        (path for name in ("mpirun", "mpiexec") for path in [shutil.which(name, path=str(beside))] if path),
        shutil.which("mpirun") or shutil.which("mpiexec"),
    )


def command(mpirun: str, np: int, *program: str) -> list[str]:
    """`python PROGRAM` on `np` ranks; PROGRAM is a file, or RINGREDUCE, and its arguments."""
    return [mpirun, "-np", str(np), sys.executable, *program]


def start(mpirun: str, np: int) -> NoReturn:
    """Become `mpirun -np NP` of this command. Does not return."""
    sys.stdout.flush()
    os.execvpe(mpirun, command(mpirun, np, *RINGREDUCE, *sys.argv[1:]), environment())


class JobFailed(Exception):
    """A job that did not end well. What it had to say is on stderr."""


def measure(job_command: Sequence[str]) -> dict[str, Any]:
    """Run a job to its end; returns what it writes to `--json FILE`. JobFailed if it fails."""
    plain = {**environment(), "TTY_COMPATIBLE": "0"}
    with tempfile.TemporaryDirectory(prefix="ringreduce-bench-") as directory:
        file = Path(directory) / "job.json"
        whole = [*job_command, "--json", str(file)]
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        with subprocess.Popen(whole, env=plain, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as job:
            try:
                status = job.wait()
            except BaseException:
                job.terminate()  # whatever ends this process; mpirun ends its ranks
                raise
            finally:
                signal.signal(signal.SIGTERM, before)
        if status:
            raise JobFailed(f"{' '.join(job_command)} ended with status {status}")
        content: dict[str, Any] = json.loads(file.read_text())
    return content


def environment() -> dict[str, str]:
    """This environment, and what the ranks cannot see through mpirun: the terminal's size, if it is one.

    The names are those that rich reads. (Open MPI gives its ranks a terminal of their own.)
    """
    result = {**_OPEN_MPI, **os.environ}
    if is_terminal := sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        result |= {"COLUMNS": str(columns), "LINES": str(lines)}
    return result | {"TTY_COMPATIBLE": str(int(is_terminal))}


def has_terminal() -> bool:
    """Whether the launching process found one. By hand under mpirun nobody knows: then plain text."""
    return os.environ.get("TTY_COMPATIBLE") == "1"
