"""docs/adding.md names every place: the sources that know the example of a thing are named in its section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    path
    for folder in ("csrc", "ringreduce")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".h", ".cc", ".cu", ".cuh", ".py", ".pyi")
]
SECTIONS = re.split(r"^## ", (ROOT / "docs" / "adding.md").read_text(), flags=re.MULTILINE)[1:]


def example(section: str) -> str:
    """The words of the example, as a regular expression."""
    found = re.search(r"^Example: (.+)$", section, re.MULTILINE)
    assert found, f"no example in {section[:40]!r}"
    return r"\b(" + "|".join(re.findall(r"`([^`]+)`", found.group(1))) + r")\b"


def named(section: str) -> set[str]:
    return set(re.findall(r"`((?:csrc|ringreduce|tests|docs)/[\w./]+)`", section))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_every_place_is_named(section):
    words = re.compile(example(section))
    know = {str(path.relative_to(ROOT)) for path in SOURCES if words.search(path.read_text())}
    assert know, "nothing knows the example"
    assert know - named(section) == set(), "not named"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.splitlines()[0])
def test_what_is_named_is_there(section):
    assert [name for name in named(section) if not (ROOT / name).is_file()] == []
