"""What setup.py and setup_cuda.py share: running compilers, and only where something has changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / "objects" / sysconfig.get_platform()


def jobs() -> int:
    """How many compilers run at once."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def is_current(output: Path, inputs: list[Path], command: list[str]) -> bool:
    """Whether `output` was made by `command` and is newer than all of `inputs`."""
    stamp = output.with_suffix(".command")
    if not output.exists() or not stamp.exists() or stamp.read_text() != shlex.join(command):
        return False
    return all(path.exists() and path.stat().st_mtime <= output.stat().st_mtime for path in inputs)


def write_if_changed(path: Path, text: str) -> Path:
    """Writes a source that the build makes; one that says the same already stays as old as it is."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def dependencies(depfile: Path) -> list[Path]:
    """The files that a compiler has written into a .d file; none where it has not run yet."""
    if not depfile.exists():
        return []
    return [ROOT / name for name in depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()]


def run(command: list[str], output: Path, signature: list[str], advice: str = "") -> None:
    """Runs a compiler; its messages go through whole, whichever thread it ran in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f"{shlex.join(command)}\n{done.stdout}", end="", flush=True)
    if done.returncode:
        raise SystemExit(f"ringreduce: could not build {output.name}{advice}:\n{done.stdout}")
    output.with_suffix(".command").write_text(shlex.join(signature))
