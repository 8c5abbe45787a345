"""Handles of asynchronous operations.

A handle keeps the tensors of its operation alive. One that is dropped while the operation
is under way leaves them in `_orphans` until the core is done with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor

from ringreduce import _context, _gpu
from ringreduce._core import Op
from ringreduce.errors import RingreduceError

T = TypeVar("T")
U = TypeVar("U")

_orphans: deque[tuple[list[Op], object]] = deque()


def keep_until_done(ops: list[Op], buffers: object) -> None:
    """Keep `buffers` alive until all `ops` are done; with no ops, for good."""
    while _orphans and _orphans[0][0] and all(op.done() for op in _orphans[0][0]):
        _orphans.popleft()
    _orphans.append((ops, buffers))


class Handle(Generic[T]):
    """An operation under way: pass it to `poll` and `synchronize`.

    Args:
        ops: the core's operations.
        finish: makes the result, once all ops are done; it refers to all buffers.
        key: (kind, set, name) of a named operation, which is in flight until the handle is
            synchronized or dropped.
        gpu_buffers: the tensors of an operation on the GPU; None on the CPU.
    """

    def __init__(
        self, ops: list[Op], finish: Callable[[], T], key: tuple[str, int, str] | None = None,
        gpu_buffers: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        self._ops = ops
        self._finish: Callable[[], T] | None = finish
        self._key = key
        self._gpu_buffers = gpu_buffers
        self._context = _context.current
        if key is not None and self._context is not None:
            self._context.names.add(key)

    def done(self) -> bool:
        """Whether `wait` would return at once. Never blocks."""
        return all(op.done() for op in self._ops)

    def consumed(self) -> bool:
        """Whether the result was taken, or the operation's failure was raised."""
        return self._finish is None

    def wait(self) -> T:
        """Wait, and return the result. Raises RingreduceError if the operation failed.

        On the GPU: until the ranks have agreed and the work is enqueued; the caller's current
        stream then waits for it, the host does not.
        """
        finish = self._finish
        assert finish is not None, "the result was taken already"
        try:
            for op in self._ops:
                op.wait()
            if self._gpu_buffers is not None:
                _gpu.after(self._ops, self._gpu_buffers)
        except RingreduceError:
            self._release()
            if not self.done():  # a deadline passed: the core may still come to the buffers
                keep_until_done(self._ops, finish)
            raise
        self._release()
        return finish()

    def map(self, convert: Callable[[T], U]) -> Handle[U]:
        """The same operation with `convert` applied to its result; self is used up."""
        finish, key = self._finish, self._key
        assert finish is not None
        self._finish = self._key = None
        return Handle(self._ops, lambda: convert(finish()), key, self._gpu_buffers)

    def _release(self) -> None:
        self._finish = self._gpu_buffers = None
        if self._key is not None and self._context is not None:
            self._context.names.discard(self._key)

    def __del__(self) -> None:
        finish = self._finish
        if finish is not None:
            self._release()
            if not self.done():
                keep_until_done(self._ops, finish)


def check_name(kind: str, set_id: int, name: str | None) -> tuple[str, int, str] | None:
    """The key under which a named operation is in flight; ValueError if it already is."""
    if name is None:
        return None
    key = (kind, set_id, name)
    if key in _context.require().names:
        raise ValueError(f"name: {kind} {name!r} is in flight; a name is free again after synchronize()")
    return key


def poll(handle: Handle[Any]) -> bool:
    """Whether an operation is done (or failed), so that `synchronize` returns at once.

    Never blocks. Raises ValueError for something that is no handle, or was synchronized.
    """
    if not isinstance(handle, Handle) or handle.consumed():
        raise ValueError(f"handle: {handle!r} is not the handle of an operation in flight")
    return handle.done()


def synchronize(handle: Handle[T]) -> T | None:
    """Wait for an asynchronous operation and return its result.

    For alltoall that is the pair (output, received_splits). Returns None for something that
    is no handle, or was synchronized before. Raises RingreduceError if the operation failed.
    """
    if not isinstance(handle, Handle) or handle.consumed():
        return None
    return handle.wait()
