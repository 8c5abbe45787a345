"""Which files of tests/parallel have tests with a mark. To collect the others would cost each rank seconds."""

from __future__ import annotations

import re

from runner.launch import ROOT


def files_with(*marks: str) -> list[str]:
    """Those in which one of the marks stands, as pytest takes them."""
    mark = re.compile(rf"\bmark\.({'|'.join(marks)})\b")
    files = sorted((ROOT / "tests" / "parallel").rglob("test_*.py"))
    return [str(file.relative_to(ROOT)) for file in files if mark.search(file.read_text())]
