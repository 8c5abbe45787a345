"""What the core asks Python for a thread that waits long: where it is in the program, and who holds it up.

    waits for 20 ms                       place()      on this rank's status page
    for RINGREDUCE_STALL_WARNING          stalled()    one rank of a host reports, for all of them
    for RINGREDUCE_TIMEOUT                late()       the same; its verdict is in the errors of all

The thread comes here between two slices of its wait, with the GIL and without the engine's mutex.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

from ringreduce import _core
from ringreduce._runtime import running, stall_report

_WARNING = 1  # RINGREDUCE_LOG
_CLAIM_S = 5.0  # a report holds for others that come to the same so much later
_PATIENCE_S = 2.0  # with the rank that reports

# torch, too: backward() and step() call us from there.
_NOT_THE_PROGRAM = (f"{Path(__file__).parents[1]}/", f"{Path(torch.__file__).parent}/")


def place() -> str:
    """The program's line that has called: "train.py:87 main"; of torch's or ours where there is no other."""
    frame: FrameType | None = sys._getframe(0)
    inner = frame
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_PROGRAM):
        frame = frame.f_back
    frame = frame or inner
    assert frame is not None
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"


def stalled(title: str, seconds: float, ranks: Sequence[int], elsewhere: Sequence[int], missing: str) -> str:
    """Report that a wait takes long."""
    context = running.current
    if context is None:
        return ""
    stall = stall_report.Stall(title, seconds, list(ranks), list(elsewhere), missing)
    soon = float(dict(_core.setting_texts())["RINGREDUCE_STALL_WARNING"]) / 2
    own, by, _ = context.engine.claim_report(False, min(_CLAIM_S, soon))
    if own or by < 0:  # or the engine is busy
        _report(context, stall)
    else:
        _core.log(_WARNING, f"{title} has waited for {seconds:.0f} s: {missing}; rank {by} reports who holds it up")
    return ""


def late(title: str, seconds: float, ranks: Sequence[int], elsewhere: Sequence[int], missing: str) -> str:
    """Report that a wait has failed; returns the verdict."""
    context = running.current
    if context is None:
        return ""
    stall = stall_report.Stall(title, seconds, list(ranks), list(elsewhere), missing)
    own, by, since_ns = context.engine.claim_report(True, _CLAIM_S)
    verdict = _report(context, stall) if own or by < 0 else _verdict_of(context, by, since_ns)
    verdict = verdict or stall_report.observe(context, stall).verdict
    return "" if verdict == missing else verdict  # which the error says already


def _report(context: running.Context, stall: stall_report.Stall) -> str:
    report = stall_report.observe(context, stall)
    context.engine.say_verdict(report.verdict)  # others wait for it
    _core.log(_WARNING, report.text())
    return report.verdict


def _verdict_of(context: running.Context, rank: int, since_ns: int) -> str:
    """What the rank that reports for this host finds, or has found a moment ago."""
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        for page in context.engine.statuses():
            if page["rank"] == rank and page["verdict"] and page["verdict_ns"] >= since_ns:
                return str(page["verdict"])
        time.sleep(0.01)
    return ""
