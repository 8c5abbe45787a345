"""`ringreduce bench` and benchmarks/: no module needs one that needs it, not even for types."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("ringreduce/bench", "benchmarks", "benchmarks/on_gpu")


def imports(path):
    """Full names of what it imports: modules, and what is taken from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def graph(folder):
    modules = {f"{folder.replace('/', '.')}.{path.stem}": imports(path) for path in (ROOT / folder).glob("*.py")}
    return {name: needs & set(modules) for name, needs in modules.items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circles(folder):
    needs = graph(folder)
    assert any(needs.values())
    TopologicalSorter(needs).prepare()  # CycleError names them


def test_ringreduce_knows_nothing_of_benchmarks():
    for path in (ROOT / "ringreduce").rglob("*.py"):
        assert not [one for one in imports(path) if one and one.split(".")[0] == "benchmarks"], path
