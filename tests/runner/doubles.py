"""The doubles of CUDA and NCCL (tests/doubles/), built when a test asks for them."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / "build" / "doubles"


def why_not() -> str:
    """What is missing to build them; "" if nothing is."""
    missing = [program for program in ("make", "g++") if not shutil.which(program)]
    return f"{' and '.join(missing)} (to build the doubles of CUDA and NCCL) not found" if missing else ""


def build() -> tuple[Path, Path]:
    """The libraries of CUDA and NCCL. The ranks of a job may call it at once."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (DIRECTORY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-j2", "doubles"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return DIRECTORY / "libcuda_double.so", DIRECTORY / "libnccl_double.so"
