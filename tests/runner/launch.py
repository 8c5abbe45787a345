"""Starts programs on several ranks, under Open MPI or MPICH, also where the user is root and the
cores are few."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds after which a program counts as hanging: many times what one takes on a busy machine

# Open MPI 5 reads PRTE_*, Open MPI 4 OMPI_*; MPICH reads neither and needs none.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}
# What a launcher leaves in the environment of its ranks, which a job started from a rank would take
# for its own, and likewise what a make leaves.
OF_ANOTHER_JOB = re.compile(
    r"^(PMI|PMIX|PRTE_LAUNCHED|MPI_LOCAL|HYD_|HYDI_|OMPI_(COMM|WORLD|UNIVERSE|APP|FILE|FIRST|NUM|ARGV|VERSION|TOOL|LIBDIR)"
    r"|OMPI_MCA_(ess|orte|pmix|initial|num_procs|cpu_type|PREFIXES)|MAKEFLAGS$|MFLAGS$|MAKELEVEL$)"
)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a new job, also where this process is a rank of another."""
    kept = {name: value for name, value in os.environ.items() if not OF_ANOTHER_JOB.match(name)}
    return {**kept, **{k: v for k, v in MPI_ENVIRONMENT.items() if k not in kept}, **(extra or {})}


def die_with_parent(number: int = signal.SIGTERM) -> Callable[[], None]:
    """A preexec_fn: the kernel sends the child this signal when the thread that starts it ends."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended already
            os._exit(1)

    return prepare


@dataclass(frozen=True)
class Launcher:
    """An MPI's mpirun and the Python that finds the same MPI."""

    mpirun: str
    python: str = sys.executable
    options: Sequence[str] = ()
    prefix: Sequence[str] = ()  # a command that runs mpirun, such as nsenter's
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The MPI's name and version, such as "Open MPI 5.0.11"."""
        done = subprocess.run(
            [self.mpirun, "--version"], capture_output=True, text=True, env=clean_environment(), check=False
        )
        if found := re.search(r"Open MPI\)? *v?([\d.]+)", done.stdout):
            return f"Open MPI {found[1]}"
        if found := re.search(r"Version: +([\d.]+)", done.stdout):
            return f"MPICH {found[1]}"
        return self.mpirun

    def command(self, size: int, *arguments: str) -> list[str]:
        """The command line that runs `python ARGUMENTS` on `size` ranks."""
        return [*self.prefix, self.mpirun, "-np", str(size), *self.options, self.python, *arguments]

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return clean_environment({**self.environment, **(extra or {})})

    def run(self, size: int, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """Runs `python ARGUMENTS` on `size` ranks to its end; `extra` goes into the environment."""
        return subprocess.run(
            self.command(size, *arguments),
            cwd=ROOT,
            env=self.env(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


def find_launcher(python: str = sys.executable) -> Launcher | None:
    """The mpirun beside `python`, else the one on PATH, else None."""
    beside = Path(python).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    return Launcher(mpirun, python) if mpirun else None
