"""Noticing that the outermost backward pass ends, before `backward()` returns.

Autograd runs callbacks at the end of a graph task. Reentrant checkpointing runs a task
inside another's node, and only the outermost one is a backward pass of the user's:

    outer task   head ─► Checkpoint.backward ────────────────► embedding ─► end: callback
    inner task              └► layer ─► layer ─► end: nothing

From a hook in an inner task the outer one cannot be reached at once. But the node that
started the inner task is on the Python stack, and a hook on the nodes after it runs in the
outer task: there the question is asked again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.autograd.function import BackwardCFunction

_NODE_FRAMES = {BackwardCFunction.apply.__code__} | (
    {BackwardCFunction.apply_boxed.__code__} if hasattr(BackwardCFunction, "apply_boxed") else set()
)


class Listener(Protocol):
    """Who wants to know. Of several, all hear `launch` before any hears `complete`."""

    serial: int  # the order in which listeners are called, the same on all ranks

    def launch(self) -> None:
        """Start what communication is left."""

    def complete(self) -> None:
        """Wait for it."""


class BackwardEnd:
    """Calls `listener.launch` and `listener.complete` once at the end of each backward pass."""

    def __init__(self, listener: Callable[[], Listener | None]) -> None:
        self._listener = listener
        self._task = -1  # the graph task that was seen last
        self._armed: set[int] = set()  # outermost tasks whose end is awaited

    def arm(self) -> None:
        """To be called from every gradient hook: cheap but for the first in a task."""
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        if task in self._armed:
            return
        enclosing = _enclosing_node()
        if enclosing is None:
            self._armed.add(task)
            _queue(self._ended)
        else:
            self._arm_after(enclosing)

    def _arm_after(self, node: Any) -> None:
        handles: list[Any] = []

        def in_outer_task(_grads: Any) -> None:
            for handle in handles:
                handle.remove()
            self.arm()

        for following, _ in node.next_functions:
            if following is not None:
                handles.append(following.register_prehook(in_outer_task))

    def _ended(self) -> None:
        self._task = -1
        self._armed.clear()
        listener = self._listener()
        if listener is not None:
            if not _ending.listeners:
                _queue(_finish_all)
            _ending.listeners.append(listener)


class _Ending(threading.local):
    def __init__(self) -> None:
        self.listeners: list[Listener] = []


_ending = _Ending()


def _finish_all() -> None:
    """Runs after the callbacks of all optimizers that took part in the pass.

    All launch before one waits: ranks whose hooks fired in another order cannot block
    each other.
    """
    listeners = sorted(_ending.listeners, key=lambda listener: listener.serial)
    _ending.listeners = []
    for listener in listeners:
        listener.launch()
    for listener in listeners:
        listener.complete()


def _queue(callback: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _enclosing_node() -> Any:
    """The autograd node whose backward started the current graph task, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _NODE_FRAMES:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
