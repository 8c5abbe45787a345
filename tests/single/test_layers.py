"""The direction of every #include in csrc and of every import in ringreduce, and what else a layer may know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted(path for suffix in ("*.h", "*.cc", "*.cu", "*.cuh") for path in CSRC.rglob(suffix))

# A layer may include itself and what is named here.
_MOVING = {"shm", "net", "ops", "kernels", "common"}
MAY_INCLUDE = {
    "common": set(),
    "kernels": {"common"},
    "shm": {"common"},
    "net": {"common"},
    "ops": {"kernels", "common"},
    "collectives": _MOVING,
    "agreement": _MOVING | {"collectives"},
    "mailbox": _MOVING | {"collectives"},
    "buckets": _MOVING | {"collectives", "agreement"},
    "gpu": _MOVING | {"collectives", "buckets"},
    "liveness": _MOVING | {"collectives", "agreement"},
    "engine": _MOVING | {"collectives", "agreement", "mailbox", "buckets", "gpu", "liveness"},
    "bindings": _MOVING | {"collectives", "agreement", "mailbox", "buckets", "gpu", "liveness", "engine"},
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


ENGINE_CALL = re.compile(r"\b(?:engine|target|get\(\))\.(?!get\()(\w+)\(")


def without_gil(text: str, at: int) -> bool:
    """Whether `at` is within an argument of without_gil() or wait_with_signals(), or a block that releases the GIL."""
    for guard, opens, closes in (
        ("without_gil(", "(", ")"),
        ("wait_with_signals(", "(", ")"),
        ("release release;", "{", "}"),
    ):
        begin = text.rfind(guard, 0, at)
        inside = text[begin:at]
        if begin >= 0 and inside.count(opens) >= inside.count(closes) + (opens == "("):
            return True
    return False


def unguarded(text: str) -> list[str]:
    """The calls of the engine with the GIL."""
    return [call.group(1) for call in ENGINE_CALL.finditer(text) if not without_gil(text, call.start())]


def test_nothing_holds_the_gil_while_it_waits_for_the_engine():
    """A binding that takes the engine's mutex with the GIL stops all threads until it gets it."""
    calls = 0
    for path in SOURCES:
        if layer(path) == "bindings":
            text = without_comments(path.read_text())
            assert unguarded(text) == [], name(path)
            calls += len(ENGINE_CALL.findall(text))
    assert calls > 20
    assert unguarded("raise_if(without_gil([&] { return engine.add_set(1); })); engine.remove_set(1);") == [
        "remove_set"
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_instructions_of_one_processor_have_their_place(path):
    """The core is built for others than x86: common/pause.h knows the ways to pause, kernels/ ask what there is."""
    if layer(path) != "kernels" and name(path) != "common/pause.h":
        assert not re.search(r"__builtin_ia32_|immintrin\.h|\b_mm\w*_\w+\(", without_comments(path.read_text()))


PACKAGE = CSRC.parent / "ringreduce"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up; parts of one line know nothing of each other. What the native core is made of is below all.
ORDER = [
    ["_core", "_version"],
    ["errors", "_placement", "reduction"],
    ["_runtime"],
    ["_ops", "compression"],
    ["collectives", "p2p", "objects", "handle", "process_set", "topology"],
    ["state", "_lifecycle", "_gradients"],
    ["optimizer", "drift"],
    ["doctor", "observe"],
    ["bench"],
    ["cli"],
    ["__init__", "__main__"],
]
HEIGHT = {part: height for height, parts in enumerate(ORDER) for part in parts}


def part(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(text: str) -> set[str]:
    """The parts of ringreduce that a module imports, wherever it does: also in functions and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            where = node.module.split(".")
            if where[0] == "ringreduce":
                found |= set(where[1:2]) or {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ringreduce.")}
    return found


# Within _gradients, from the bottom up, as its docstring draws it.
GRADIENTS = [
    ["options", "names", "channels", "layout", "marks", "holders", "backward", "group", "phases"],
    ["slot", "drift_windows"],
    ["hooks", "edits", "delivery", "drift_compare", "drift_digests"],
    ["parameters", "refusals", "drift_gpu", "drift_report", "arena", "gpu_memory", "sparse"],
    ["drift", "rest", "exchange"],
    ["plan", "local_sgd"],
    ["agreement"],
    ["planning"],
    ["step"],
    ["backward_pass"],
    ["averaging"],
    ["__init__"],
]


@pytest.mark.parametrize("path", sorted((PACKAGE / "_gradients").glob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down_within_gradients(path):
    height = {name: at for at, names in enumerate(GRADIENTS) for name in names}
    others = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ringreduce._gradients"):
            where = node.module.split(".")
            others |= set(where[2:3]) or {alias.name for alias in node.names}
    assert [other for other in others if height[other] >= height[path.stem]] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = part(path)
    upwards = [other for other in imports(path.read_text()) - {own} if HEIGHT[other] >= HEIGHT[own]]
    assert upwards == []


def test_imports_are_found():
    text = "from ringreduce import _core, state\nimport ringreduce.cli\ndef f():\n from ringreduce._ops import check\n"
    assert imports(text) == {"_core", "state", "cli", "_ops"}
