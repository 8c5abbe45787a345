"""Names of optimizers: the same on all ranks, so that their messages meet, without asking anybody.

An optimizer is known by its thread and by its number among those that this thread has made for its process set.
Threads of one function are told apart by the order in which they were made: their default names have numbers,
but other threads (a progress bar's on rank 0) get such numbers, too.
"""

from __future__ import annotations

import re
import threading
import weakref
from typing import Any

_DEFAULT = re.compile(r"Thread-(\d+) \((.*)\)")
_made: weakref.WeakKeyDictionary[Any, dict[str, int]] = weakref.WeakKeyDictionary()  # set -> thread -> optimizers


def optimizer_name(process_set: Any) -> str:
    """A new optimizer's name, for its operations."""
    numbers = _made.setdefault(process_set, {})
    thread = _thread_label()
    number = numbers[thread] = numbers.get(thread, -1) + 1
    return f"ringreduce.optimizer{number}{thread}"


def _thread_label() -> str:
    current = threading.current_thread()
    if current is threading.main_thread():
        return ""
    default = _DEFAULT.fullmatch(current.name)
    if default is None:
        return f".{current.name}"
    number, function = int(default[1]), default[2]
    others = [_DEFAULT.fullmatch(thread.name) for thread in threading.enumerate()]
    before = sum(other is not None and other[2] == function and int(other[1]) < number for other in others)
    return f".{function}.{before}"
