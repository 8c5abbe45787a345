"""Where in the program the library was entered."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

# torch, too: backward() and step() call us from there.
_NOT_THE_PROGRAM = (f"{Path(__file__).parents[1]}/", f"{Path(torch.__file__).parent}/")


def of_this_call() -> str:
    """The program's line that has called: "train.py:87 main"; of torch's or ours where there is no other."""
    frame: FrameType | None = sys._getframe(1)
    inner = frame
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_PROGRAM):
        frame = frame.f_back
    return _show(frame or inner)


def _show(frame: FrameType | None) -> str:
    if frame is None:  # a thread of C++
        return ""
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
