"""A copy of the sources, with what was built of them, in which checks run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from runner.launch import ROOT, clean_environment

from mutations.mutation import SOURCES

COPIED = (
    *SOURCES,
    "tests",
    "packaging",
    "Makefile",
    "setup.py",
    "setup_objects.py",
    "setup_cuda.py",
    "pyproject.toml",
    "README.md",
)
OBJECTS = ("build/objects", "build/native", "build/doubles")
LONGEST_S = 1800.0  # for a check or a build; a test that hangs ends after LONGEST_TEST_S
LONGEST_TEST_S = 600
BUILD_CORE = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
FAILED = re.compile(r"^(?:FAILED |--- FAILED )(.*)$", re.MULTILINE)


@dataclass
class Tree:
    """Sources and objects under `root`."""

    root: Path

    @classmethod
    def of_sources(cls, root: Path) -> Tree:
        """A copy of the project's own sources and objects. Objects that are current stay current."""
        root.mkdir(parents=True, exist_ok=True)
        _copy(ROOT, root, [name for name in COPIED if (ROOT / name).exists()])
        _copy(ROOT, root, [name for name in OBJECTS if (ROOT / name).exists() and not (root / name).exists()])
        return cls(root)

    def copy(self, root: Path) -> Tree:
        """The same again, without the native programs, which are linked anew."""
        _copy(self.root, root, [*COPIED, *(name for name in OBJECTS if (self.root / name).exists())])
        return Tree(root)

    def build_all(self, checks: list[str]) -> None:
        """What the checks need, so that a copy has it."""
        programs = {_program(check) for check in checks if check.startswith("native ")}
        if programs:
            self.build("make", "-s", "-j2", "doubles", *sorted(programs))
        if len(programs) < len(checks):
            self.build(*BUILD_CORE)

    def failure(self, check: str, in_core: bool) -> str:
        """Runs a check on what is built of the tree; the name of the first test that fails, or "".

        ValueError if it cannot be built.
        """
        kind, _, rest = check.partition(" ")
        if kind == "native":
            case = rest.partition(":")[2]
            self.build("make", "-s", "-j2", "doubles", _program(check))
            return self.run(str(self.root / _program(check)), *([case] if case else []))
        if in_core:
            self.build(*BUILD_CORE)
        size, _, word = rest.partition(" ")
        selected = {
            "single": ["--only", "single", "-k", rest],
            "parallel": ["--only", "parallel", "--np", size, "-k", word],
            "split": ["--only", "split", "--hosts", size, "-k", word],
        }[kind]
        # With what `make test` has of them.
        of_test = ("--level", "test", "--test-timeout", str(LONGEST_TEST_S))
        return self.run(sys.executable, "tests/run.py", *selected, *of_test)

    def build(self, *command: str) -> None:
        done = self._started(command)
        if done.returncode:
            raise ValueError(f"cannot be built: {done.stdout[-2000:]}")

    def run(self, *command: str) -> str:
        try:
            done = self._started(command)
        except subprocess.TimeoutExpired:
            return f"took more than {LONGEST_S:.0f} s"
        if "0 passed, 0 failed" in done.stdout or "no test case matches" in done.stdout:
            raise ValueError(f"{' '.join(command)} runs no test")
        found = FAILED.search(done.stdout)
        if found and found[1].endswith((": (start)", ": (between tests)")):
            raise ValueError(f"{' '.join(command)} did not come to its tests: {found[1]}")
        return (found[1] if found else f"exit status {done.returncode}") if done.returncode else ""

    def _started(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(self.root), "PATH": os.environ["PATH"], "RINGREDUCE_CUDA": "0"}
        env = clean_environment({**own, "RR_TEST_PATIENCE": "60"})  # on a machine that has nothing else to do
        return subprocess.run(
            command, cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=LONGEST_S, check=False,
        )  # fmt: skip


def _program(check: str) -> str:
    """Of a native check."""
    return f"build/native/{check.split()[1].partition(':')[0]}"


def _copy(source: Path, target: Path, names: list[str]) -> None:
    """Makes `target` hold these files and folders as they are, times included; programs and test output stay behind."""
    for name in names:
        here, there = source / name, target / name
        if here.is_dir():
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(here, there, ignore=_left_behind, symlinks=True)
        else:
            shutil.copy2(here, there)


def _left_behind(directory: str, names: list[str]) -> list[str]:
    """Programs of build/native, caches of Python."""
    programs = [name for name in names if directory.endswith("build/native") and name.startswith("test_")]
    return [*programs, *(name for name in names if name == "__pycache__")]
