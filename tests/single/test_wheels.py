"""Which wheels `make wheel` builds. What they are: tests/programs/test_wheels.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("wheels", ROOT / "packaging" / "wheels.py")
assert spec is not None
assert spec.loader is not None
wheels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(wheels)

THIS = ".".join(map(str, sys.version_info[:2]))


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A PATH without Pythons, to put some on."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def fake_python(path: Path, version: str) -> str:
    """One that answers every question with its version; "" for what pyenv puts on PATH and does not run."""
    path.write_text(f"#!/bin/sh\necho {version}\n" if version else "#!/bin/sh\nexit 127\n")
    path.chmod(0o755)
    return str(path)


def others(named: list[str]) -> dict[str, str]:
    """All but this Python, which runs the test."""
    found = wheels.older_pythons(named)
    assert (THIS in found) == (THIS in wheels.OLDER)
    return {version: python for version, python in found.items() if python != sys.executable}


def test_this_python_if_it_is_an_older_one(nowhere):
    assert others([]) == {}


def test_older_ones_on_the_path(nowhere):
    older = next(version for version in wheels.OLDER if version != THIS)
    fake_python(nowhere / f"python{older}", older)
    assert others([]) == {older: f"python{older}"}


def test_one_that_does_not_run_is_passed_over(nowhere):
    for version in wheels.OLDER:
        fake_python(nowhere / f"python{version}", "")
    assert others([]) == {}


def test_newer_ones_need_none_of_their_own(nowhere):
    assert others([fake_python(nowhere / "newer", "3.12"), fake_python(nowhere / "newest", "3.14")]) == {}


def test_a_named_one_comes_before_others_of_its_version(nowhere):
    named = fake_python(nowhere / "mine", wheels.OLDER[0])
    fake_python(nowhere / f"python{wheels.OLDER[0]}", wheels.OLDER[0])
    assert wheels.older_pythons([named])[wheels.OLDER[0]] == named


def test_a_named_one_must_run(nowhere):
    for python in ("/nowhere/python", fake_python(nowhere / "broken", "")):
        with pytest.raises(SystemExit, match=f"{python} is no CPython that runs"):
            wheels.older_pythons([python])
