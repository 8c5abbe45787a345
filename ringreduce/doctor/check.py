"""A check's outcome."""

from __future__ import annotations

from typing import NamedTuple

OK, FAILED, SKIPPED = "ok", "failed", "skipped"


class Check(NamedTuple):
    """What was tried, how it went ("ok", "failed", "skipped"), and why or how."""

    name: str
    status: str
    text: str = ""
