"""Gives each rank its GPU.

    look()      what this rank sees: a Report, None without a GPU       (starts no CUDA)
      │  exchanged by init, with everything else that ranks tell each other
    settle()    torch's current device becomes that of the local rank, unless the program has
                chosen, and what is odd is told, both when CUDA starts in this process: a
                program that uses no GPU gets no CUDA context, and no warnings

The program may call torch.cuda.set_device at any time. If it has used CUDA before init, its
current device stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ringreduce import _core
from ringreduce._placement import nvml
from ringreduce._placement.oddities import oddities
from ringreduce._placement.seats import Report, Seat, by_device

_WARNING, _INFORMATION, _DEBUG = 1, 2, 3  # RINGREDUCE_LOG


class _Pending(NamedTuple):
    """To be done when CUDA starts."""

    device: int | None  # None: the program has chosen
    uses: str
    warnings: list[str]


_pending: _Pending | None = None
_said: set[str] = set()  # warnings are told once a process, however often it calls init


def look(environ: Mapping[str, str]) -> Report | None:
    """What this rank sees; None without a GPU that torch can use. Starts no CUDA."""
    if torch.version.cuda is None:
        return None
    count = torch.cuda.device_count()
    if count == 0:
        return None
    chosen = torch.cuda.current_device() if _cuda_runs() else None
    report = Report(count, chosen, environ.get("CUDA_VISIBLE_DEVICES"))
    library, problem = nvml.load()
    if library is None:
        return report._replace(problem=problem)
    try:
        gpus = by_device(nvml.read(library), report.visible, environ.get("CUDA_DEVICE_ORDER"))
    except library.NVMLError as error:
        return report._replace(problem=f"NVML: {error}")
    finally:
        library.nvmlShutdown()
    if len(gpus) != count:
        return report._replace(problem=f"of {count} devices NVML names {len(gpus)}")
    return report._replace(gpus=gpus)


def settle(me: int, seats: Sequence[Seat]) -> None:
    """Give this rank its GPU, once all ranks have told what they see."""
    global _pending
    report = seats[me].report
    if report is None:
        return
    if report.problem:
        _core.log(_DEBUG, f"GPUs are not known by name: {report.problem}")
    device = report.device(seats[me].local_rank)
    is_queued = _pending is not None
    _pending = _Pending(
        device if report.chosen is None else None,
        report.describe(device),
        [text for speaker, text in oddities(seats) if speaker == me],
    )
    if _cuda_runs():
        _start()
    elif not is_queued:
        # What torch.cuda.manual_seed uses. A torch that has it no more starts CUDA here.
        getattr(torch.cuda, "_lazy_call", lambda call: call())(_start)


def _start() -> None:
    if _pending is None:
        return
    if _pending.device is not None:
        torch.cuda.set_device(_pending.device)
    _core.log(_INFORMATION, f"this rank uses {_pending.uses}")
    for text in _pending.warnings:
        if text not in _said:
            _said.add(text)
            _core.log(_WARNING, text)


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
