"""`pip install .` and `pip install -e .` on their own: no torch, no MPI, no help from the Makefile."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

import pytest
from runner.source_tree import assert_installed, bare_python, run, site_packages

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.thorough
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return bare_python(tmp_path_factory.mktemp("venv"))


def has_toolkit() -> bool:
    """Whether the build finds a CUDA toolkit, and is allowed to use it."""
    try:
        setup_cuda.find_toolkit(os.environ)
    except setup_cuda.NotBuilt:
        return False
    return os.environ.get("RINGREDUCE_CUDA") != "0"


def test_pip_install(tree, python, tmp_path):
    done = run(python, "-m", "pip", "install", "-q", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    package = site_packages(python) / "ringreduce"
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()
    assert len(list(package.glob("_core.*.so"))) == 1
    assert (package / setup_cuda.LIBRARY).is_file() == has_toolkit()
    metadata = next(site_packages(python).glob("ringreduce-*.dist-info/METADATA")).read_text()
    assert "Requires-Dist: mpi4py" in metadata
    assert "Requires-Dist: torch" not in metadata
    assert not [line for line in metadata.splitlines() if line.startswith("Requires-Dist: nvidia-nccl")]
    assert_installed(python, tmp_path)


def test_pip_install_editable(tree, python, tmp_path):
    done = run(python, "-m", "pip", "install", "-q", "-e", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tree / "ringreduce").glob("_core.*.so"))) == 1
    assert (tree / "ringreduce" / setup_cuda.LIBRARY).is_file() == has_toolkit()
    assert not (site_packages(python) / "ringreduce").exists()
    assert_installed(python, tmp_path)


def test_the_second_build_compiles_nothing(tree, python, tmp_path):
    objects = sorted((tree / "build" / "objects").rglob("*.o"))
    before = {path: path.stat().st_mtime_ns for path in objects}
    done = run(python, "-m", "pip", "install", "-q", "-e", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(before) > 10
    assert {path: path.stat().st_mtime_ns for path in objects} == before


def test_without_cuda_there_is_no_cuda_library(tree, python, tmp_path):
    """Nor is one left of an earlier build."""
    done = run(python, "-m", "pip", "install", "-v", "-e", tree, cwd=tmp_path, cuda=False)
    assert done.returncode == 0, done.stderr
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "built for CPUs only" in line]
    assert said == ["ringreduce: built for CPUs only, without the CUDA library: RINGREDUCE_CUDA is 0"]
    assert not (tree / "ringreduce" / setup_cuda.LIBRARY).exists()
    assert_installed(python, tmp_path)


def test_the_source_distribution_has_all_that_the_build_needs(tree, python, tmp_path):
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(tmp_path)!r})"
    done = run(python, "-m", "pip", "install", "-q", "setuptools>=77", "nanobind", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run(python, "-c", build, cwd=tree)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("ringreduce-*.tar.gz"))) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {str(path.relative_to(tree)) for path in tree.glob("csrc/**/*") if path.is_file()}
    needed |= {path.name for path in tree.glob("setup*.py")} | {"pyproject.toml"}
    assert needed - packed == set()
