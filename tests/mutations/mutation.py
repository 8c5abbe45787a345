"""What a mutation is: one small fault, put into a copy of the sources, and the tests that should find it.

They are in *.txt, each like this:

    op_table.cc: whoever posts last does not ring       its file by name alone, as folders may move; what is wrong
    - if (last) bell_->ring();                          the text, which is there exactly once
    + (void)last;                                       what takes its place; nothing if there is no such line
    ? native test_waiting                               checks, of which one must fail

A check is a part of a stage of tests/run.py:

    native test_engine:collectives     a program, and a part of the names of its cases
    parallel 3 broadcast               tests/parallel on 3 ranks, -k broadcast
    split 1+3 broadcast                the same over pretended hosts
    single drift                       tests/single in one process, -k drift
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

SOURCES = ("csrc", "ringreduce")
_FOLDERS = {"parallel": "parallel", "split": "parallel", "single": "single"}  # of tests, by kind of check


@dataclass
class Mutation:
    """Replace `old` by `new` in `file`; one of `checks` must then fail."""

    file: str
    wrong: str
    old: list[str] = field(default_factory=list)  # lines
    new: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.file}: {self.wrong}"

    @property
    def in_core(self) -> bool:
        return self.file.endswith((".cc", ".h"))

    def place(self, root: Path) -> Path:
        """The file that has the text; ValueError if it is not there exactly once."""
        files = [path for folder in SOURCES for path in sorted((root / folder).rglob(self.file))]
        found = [path for path in files for _ in range(path.read_text().count("\n".join(self.old)))]
        if len(found) != 1:
            raise ValueError(f"its text is {len(found)} times in the {len(files)} file(s) of this name")
        return found[0]

    def trouble(self, root: Path) -> str:
        """Why it cannot be tried; "" if it can. Seen from the sources alone."""
        try:
            self.place(root)
        except ValueError as error:
            return str(error)
        if not self.checks:
            return "it has no check"
        return ", ".join(f"{check!r} names no test" for check in self.checks if not _names_a_test(check, root))

    def put_into(self, root: Path) -> Path:
        """Changes the file, and returns it."""
        path = self.place(root)
        path.write_text(path.read_text().replace("\n".join(self.old), "\n".join(self.new)))
        return path


def _names_a_test(check: str, root: Path) -> bool:
    """Whether there is a program with such a case, or a file or function of Python tests with such a name."""
    kind, _, rest = check.partition(" ")
    if kind == "native":
        program, _, case = rest.partition(":")
        source = root / "tests" / "native" / f"{program}.cc"
        return source.exists() and re.search(rf"^TEST\(\w*{case}", source.read_text(), re.MULTILINE) is not None
    word = rest if kind == "single" else rest.partition(" ")[2]
    folder = root / "tests" / _FOLDERS[kind]
    return any(
        word in str(path.relative_to(folder)) or re.search(rf"def (?=test_)\w*{word}", path.read_text())
        for path in folder.rglob("test_*.py")
    )


def known() -> list[Mutation]:
    """All."""
    return [one for path in sorted(Path(__file__).parent.glob("*.txt")) for one in read(path)]


def read(path: Path) -> list[Mutation]:
    """The mutations of a file."""
    found: list[Mutation] = []
    for line in path.read_text().splitlines():
        mark, text = line[:1], line[2:]
        if mark == "-":
            found[-1].old.append(text)
        elif mark == "+":
            found[-1].new.append(text)
        elif mark == "?":
            found[-1].checks.append(text)
        elif line and mark != "#":
            found.append(Mutation(*line.split(": ", 1)))
    return found
