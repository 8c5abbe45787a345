"""Whole numbers that callers pass, such as ranks."""

from __future__ import annotations

import operator
from typing import Any


def index(argument: str, value: Any) -> int:
    """A whole number, of Python's or numpy's; not a bool."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{argument}: expected an int, got {value!r}")
