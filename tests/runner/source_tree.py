"""What a user has before anything is installed: a copy of the sources, and a Python with nothing but pip."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from runner.launch import PATIENCE, ROOT, clean_environment

SOURCES = (
    "csrc",
    "packaging",
    "ringreduce",
    "setup.py",
    "setup_objects.py",
    "setup_cuda.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


def run(*command: object, cwd: Path, cuda: bool = True) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not cuda:
        env["RINGREDUCE_CUDA"] = "0"
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
    )


def command(python: Path, *arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
    """What a user types in the active environment."""
    env = clean_environment({"PATH": f"{python.parent}:{os.environ['PATH']}"})
    env.pop("PYTHONPATH", None)
    env.update(extra)
    words = [str(argument) for argument in arguments]
    return subprocess.run(
        words, cwd=python.parent, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def assert_installed(python: Path, cwd: Path) -> None:
    """The core loads without torch and MPI; ringreduce itself says what is missing."""
    load = (
        "import importlib.util as u; package = u.find_spec('ringreduce').submodule_search_locations[0];"
        "import glob; spec = u.spec_from_file_location('_core', glob.glob(package + '/_core.*.so')[0]);"
        "core = u.module_from_spec(spec); spec.loader.exec_module(core); print(core.kernels_name())"
    )
    done = run(python, "-c", load, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("scalar", "avx2", "avx512")
    done = run(python, "-c", "import ringreduce", cwd=cwd)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError:", "ModuleNotFoundError:"))
    assert "torch" in last
    assert "install" in last


def copy_sources(copy: Path) -> None:
    """The sources, and the objects that are built already, so that they aren't built again."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_core.so")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy2(ROOT / name, copy / name)
    if (ROOT / "build" / "objects").is_dir():
        shutil.copytree(ROOT / "build" / "objects", copy / "build" / "objects", ignore=ignore)


def bare_python(directory: Path) -> Path:
    """A Python with nothing but pip; skips where pip finds no package registry."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    probe = run(
        python, "-m", "pip", "download", "-q", "--no-deps", "-d", directory / "probe", "nanobind", cwd=directory
    )
    if probe.returncode:
        pytest.skip("pip reaches no package registry")
    return python


def site_packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python*/site-packages"))


def link_installed(name: str, site: Path) -> None:
    """What `pip install NAME` would bring, of what is installed here: the package and what it declares to need."""
    found = distribution(name)
    for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(found.locate_file(top))))
    for needed in map(Requirement, found.requires or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            link_installed(needed.name, site)
