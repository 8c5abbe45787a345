"""What a rank that goes early says: the exception that ends it, for the errors of those who wait for it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

from ringreduce.errors import RingreduceError

_SHOWN = 300  # characters of its text


def of_this_process() -> str:
    """The exception that is handled now, or that has ended the program; "" for none.

    What ranks raise together is no cause: whoever waits has it, too.
    """
    error = sys.exc_info()[1] or getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if error is None or isinstance(error, (RingreduceError, GeneratorExit)) or _is_success(error):
        return ""
    text = " ".join(str(error).split())
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
    return f"{type(error).__name__}{': ' if text else ''}{text}{_place(error.__traceback__)}"


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)


def _place(trace: TracebackType | None) -> str:
    """Where the program has raised it, or called what did."""
    own = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(trace) if own not in Path(frame.filename).parents]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
