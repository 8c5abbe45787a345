"""Handles of asynchronous operations.

    submitted ──► in flight ──► done          synchronize(): the result, once
                      │ a wait has timed out: it is still in flight, and can be waited for again
                      │ the handle is dropped: the operation goes on, as the other ranks count on it

The core keeps an operation's tensors alive until it is done with them, whatever happens to the handle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast
from weakref import ref

from ringreduce._core import Message, Op
from ringreduce._ops import gpus
from ringreduce._ops.compiled import untraced
from ringreduce._runtime import running
from ringreduce.errors import RingreduceError, RingreduceTimeoutError

T = TypeVar("T")
U = TypeVar("U")

_LONGEST_S = 1e9  # a wait without end, in numbers that the core can add to a time


class Handle(Generic[T]):
    """An operation under way: pass it to `poll` and `synchronize`.

    Args:
        ops: the core's operations.
        finish: makes the result, once all ops are done; it refers to what that takes.
        key: (kind, set, name) of a named operation. Its name is in flight until the handle is
            synchronized or dropped, and the operation is done.
    """

    def __init__(
        self, ops: Sequence[Op | Message], finish: Callable[[], T], key: tuple[str, int, str] | None = None
    ) -> None:
        self._ops = ops
        self._finish: Callable[[], T] | None = finish
        self._key = key
        self._timed_out = False
        self._context = running.current
        if key is not None and self._context is not None:
            names = self._context.names
            names[key] = ref(self, lambda _: names.pop(key, None))  # also when it is dropped

    def done(self) -> bool:
        """Whether `wait` would return at once. Never blocks."""
        return all(op.done() for op in self._ops)

    def consumed(self) -> bool:
        """Whether the result was taken, or the operation's failure was raised."""
        return self._finish is None

    @untraced
    def wait(self, timeout: float | None = None) -> T:
        """Wait, and return the result.

        On the GPU: until the ranks have agreed and the work is enqueued; the caller's current
        stream then waits for it, the host does not.

        Args:
            timeout: seconds from this call on, 0 or more. None: RINGREDUCE_TIMEOUT, from the
                submission on, and after a wait that has timed out from this call on.

        Raises RingreduceTimeoutError when the time is over: the operation is still in flight, its
        tensors are in use, and it can be waited for again. RingreduceError if it failed.
        ValueError for a bad timeout.
        """
        finish = self._finish
        assert finish is not None, "the result was taken already"
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout: seconds, 0 or more, or None, got {timeout!r}")
        end = time.monotonic() + min(timeout, _LONGEST_S) if timeout is not None else math.inf
        if self._timed_out:
            for op in self._ops:
                op.renew()
        try:
            for op in self._ops:
                op.wait(None if timeout is None else max(0.0, end - time.monotonic()))
            if self._ops and self._ops[0].on_gpu:
                gpus.after(cast("list[Op]", self._ops))
        except RingreduceTimeoutError:
            self._timed_out = True
            raise
        except (RingreduceError, ValueError):  # the latter: memory for the result that does not fit it
            self._release()
            raise
        self._release()
        return finish()

    def take_back(self) -> None:
        """Of a receive: no message is to come for it any more."""
        for op in self._ops:
            if isinstance(op, Message):
                op.take_back()

    def map(self, convert: Callable[[T], U]) -> Handle[U]:
        """The same handle, with `convert` applied to its result."""
        finish = self._finish
        assert finish is not None
        mapped = cast("Handle[U]", self)
        mapped._finish = lambda: convert(finish())
        return mapped

    def _release(self) -> None:
        self._finish = None
        if self._key is not None and self._context is not None:
            self._context.names.pop(self._key, None)


def check_name(kind: str, set_id: int, name: str | None) -> tuple[str, int, str] | None:
    """The key under which a named operation is in flight; ValueError if it already is.

    Of a handle that was dropped in flight the core knows the name, and refuses it until the
    operation is done: it could not tell the two apart.
    """
    if name is None:
        return None
    key = (kind, set_id, name)
    if key in running.require().names:
        raise ValueError(f"name: {kind} {name!r} is in flight; a name is free again after synchronize()")
    return key


def poll(handle: Handle[Any]) -> bool:
    """Whether an operation is done (or failed), so that `synchronize` returns at once.

    Never blocks. Raises ValueError for something that is no handle, or was synchronized.
    """
    if not isinstance(handle, Handle) or handle.consumed():
        raise ValueError(f"handle: {handle!r} is not the handle of an operation in flight")
    return handle.done()


def synchronize(handle: Handle[T], timeout: float | None = None) -> T | None:
    """Wait for an asynchronous operation and return its result.

    For alltoall that is the pair (output, received_splits). Returns None for something that
    is no handle, or was synchronized before.

    Args:
        timeout: seconds from this call on, 0 or more. None: RINGREDUCE_TIMEOUT, from the
            submission on, and after a wait that has timed out from this call on.

    Raises RingreduceTimeoutError when the time is over: the operation is still in flight, its
    tensors are in use, and it can be synchronized again. RingreduceError if it failed.
    ValueError for a bad timeout.
    """
    if not isinstance(handle, Handle) or handle.consumed():
        return None
    return handle.wait(timeout)
