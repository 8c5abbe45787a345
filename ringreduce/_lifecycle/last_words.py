"""What a rank that goes early says: the exception that ends it, for the errors of those who wait for it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

from ringreduce.errors import RingreduceError

_SHOWN = 300  # bytes of its text


def of_this_process(ends: bool = False) -> str:
    """The exception that is handled now; where the program `ends`, the one that has ended it; "" for none.

    What ranks raise together is no cause: whoever waits has it, too.
    """
    error = sys.exc_info()[1]
    if error is None and ends:
        error = of_program()
    if error is None or isinstance(error, (RingreduceError, GeneratorExit)) or _is_success(error):
        return ""
    try:
        text = " ".join(str(error).split())
    except Exception:  # the program's own __str__; ending comes first
        text = ""
    return _cut(f"{type(error).__name__}{': ' if text else ''}{text}") + _place(error.__traceback__)


def of_program() -> BaseException | None:
    """The exception that has ended the program."""
    if hasattr(sys, "ps1"):  # an interactive session goes on after one
        return None
    return getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)


def _cut(text: str) -> str:
    """In UTF-8, which has no lone surrogates."""
    data = text.encode("utf-8", "replace")
    return data.decode() if len(data) <= _SHOWN else f"{data[:_SHOWN].decode(errors='ignore')} ..."


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _place(trace: TracebackType | None) -> str:
    """Where the program has raised it, or called what did."""
    own = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(trace) if own not in Path(frame.filename).parents]
    return f" ({_cut(Path(frames[-1].filename).name)}:{frames[-1].lineno})" if frames else ""
