"""The direction of every #include in csrc, and a few more rules about what a layer may know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted(path for suffix in ("*.h", "*.cc", "*.cu", "*.cuh") for path in CSRC.rglob(suffix))

# A layer may include itself and what is named here.
MAY_INCLUDE = {
    "common": set(),
    "kernels": {"common"},
    "transport": {"kernels", "common"},
    "collectives": {"transport", "kernels", "common"},
    "gpu": {"collectives", "transport", "kernels", "common"},
    "engine": {"gpu", "collectives", "transport", "kernels", "common"},
    "bindings": {"engine", "gpu", "collectives", "transport", "kernels", "common"},
    # A library of its own, which the core reaches through one table only.
    "gpu/cuda": {"common", "gpu/cuda_api.h"},
}
# The core is built without these and finds them at run time.
FOUND_AT_RUN_TIME = re.compile(r"^(mpi|nccl|torch/|ATen/|c10/|cuda|cuda_runtime)[\w/]*\.h$")
PYTHON = re.compile(r"^(Python\.h|nanobind/)")

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def layer(path: Path) -> str:
    parts = path.relative_to(CSRC).parts
    return "gpu/cuda" if parts[:2] == ("gpu", "cuda") else parts[0]


def includes(path: Path) -> list[tuple[str, str]]:
    """(quote, name) of each #include."""
    return INCLUDE.findall(path.read_text())


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(CSRC))


def test_there_are_sources():
    assert len(SOURCES) > 10
    assert {layer(path) for path in SOURCES} <= set(MAY_INCLUDE)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_includes_point_down(path):
    for quote, target in includes(path):
        if quote == '"':
            assert (CSRC / target).is_file(), f"{target} is not written from csrc/"
            allowed = {layer(path)} | MAY_INCLUDE[layer(path)]
            assert {target, layer(CSRC / target)} & allowed, f"{layer(path)} may not include {target}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_bindings_see_python(path):
    if layer(path) != "bindings":
        assert not [target for _, target in includes(path) if PYTHON.match(target)]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_mpi_cuda_and_torch_are_found_at_run_time(path):
    found = [target for _, target in includes(path) if FOUND_AT_RUN_TIME.match(target)]
    assert not found or (layer(path) == "gpu/cuda" and all(target.startswith("cuda") for target in found))


def test_only_settings_read_the_environment():
    readers = [
        name(path) for path in SOURCES if re.search(r"\bgetenv\b|\benviron\b", without_comments(path.read_text()))
    ]
    assert readers == ["common/settings.cc"]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_throws_below_bindings(path):
    if layer(path) != "bindings":
        assert not re.search(r"\bthrow\b", without_comments(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_begins_with_what_it_is(path):
    """A header does; a source does unless its header has said it."""
    assert path.read_text().startswith("//") or path.with_suffix(".h").exists()
