"""A second virtual environment with MPICH, to run the same built core under another MPI.

It holds nothing but MPICH (its files and Open MPI's would overwrite each other in one place).
Everything else, torch and the built ringreduce included, it takes from the environment that
runs this: mpi4py picks the libmpi of the environment it is started from.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv

from runner.launch import ROOT, Launcher, find_launcher

DIRECTORY = ROOT / ".venv-mpich"


def mpich_launcher() -> Launcher | str:
    """MPICH's launcher, installed at the first call; or why it cannot be had."""
    python = DIRECTORY / "bin" / "python"
    if not (DIRECTORY / "bin" / "mpirun").exists():
        venv.create(DIRECTORY, clear=True, with_pip=True)
        pip = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "mpich"],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if pip.returncode:
            return f"MPICH cannot be installed: {(pip.stderr.strip().splitlines() or ['pip failed'])[-1]}"
    share_packages()
    launcher = find_launcher(str(python))
    if launcher is None:
        return "MPICH's package has no mpirun"
    try:
        probe = launcher.run(2, "tests/runner/mpi_size.py")
    except subprocess.TimeoutExpired:
        return "MPICH does not start 2 ranks here"
    return launcher if probe.stdout.count("size 2") == 2 else f"MPICH does not run here: {probe.stderr.strip()[-300:]}"


def share_packages() -> None:
    """Puts the source tree and this environment's packages on the other's path."""
    for path in (DIRECTORY / "lib").glob("python*/site-packages"):
        (path / "shared.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")


if __name__ == "__main__":
    found = mpich_launcher()
    sys.exit(found if isinstance(found, str) else None)
