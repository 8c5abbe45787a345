"""Noticing that the outermost backward pass ends, before `backward()` returns, or that it fails.

Autograd runs callbacks at the end of a graph task. If the task fails, it destroys them instead, before the
exception reaches the program: that is the notice of the failure. Reentrant checkpointing runs a task
inside another's node, and only the outermost one is a backward pass of the user's:

    outer task   head ─► Checkpoint.backward ────────────────► embedding ─► end: callback
    inner task              └► layer ─► layer ─► end: nothing

From a hook in an inner task the outer one cannot be reached at once. But the node that
started the inner task is on the Python stack, and a hook on the nodes after it runs in the
outer task: there the question is asked again.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.autograd.function import BackwardCFunction

from ringreduce._ops.compiled import is_compiled_autograd, untraced
from ringreduce.errors import PlanLeftError

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

    def failed(self, why: str) -> None:
        """The pass has raised an exception instead: never both."""

    def abandon(self, why: str) -> None:
        """The pass has failed on a peer."""


@untraced
def _call(function: Callable[[], None]) -> None:
    function()


class _Notice:
    """What autograd calls when a graph task ends, and destroys when the task fails."""

    def __init__(self, ended: Callable[[], None], failed: Callable[[], None]) -> None:
        self._ended = ended
        self._failed: Callable[[], None] | None = failed

    def __call__(self) -> None:
        self._failed = None
        _call(self._ended)

    def __del__(self) -> None:
        if self._failed is not None:
            self._failed()


class BackwardEnd:
    """Calls `listener.launch` and `listener.complete` once at the end of each backward pass, or `failed`."""

    def __init__(self, listener: Callable[[], Listener | None]) -> None:
        self._listener = listener
        self._task = -1  # the graph task that was seen last
        self._ends = False  # it will be told when that one is over
        self._armed = False  # the end of an outermost task is awaited

    def arm(self) -> bool:
        """To be called from every gradient hook: cheap but for the first in a task.

        False where no end can be noticed: compiled autograd calls no callbacks, it only destroys them.
        """
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return self._ends
        self._task = task
        self._ends = task != -1 and not is_compiled_autograd()
        if not self._ends:
            return False
        if self._armed:  # this task, or one within it that a hook has started
            return True
        enclosing = _enclosing_node()
        if enclosing is None:
            self._armed = True
            _queue(_Notice(self._ended, self._failed))
        else:
            self._arm_after(enclosing)
        return True

    def _arm_after(self, node: Any) -> None:
        handles: list[Any] = []

        def in_outer_task(_grads: Any) -> None:
            for handle in handles:
                handle.remove()
            self.arm()

        for following, _ in node.next_functions:
            if following is not None:
                handles.append(following.register_prehook(in_outer_task))
        _queue(_Notice(lambda: None, self._failed))

    def _failed(self) -> None:
        self._task, self._armed = -1, False
        listener = self._listener()
        if listener is not None:
            listener.failed(_exception_in_flight())

    def _ended(self) -> None:
        self._task, self._armed = -1, False
        listener = self._listener()
        if listener is not None:
            _Finish.of_this_pass().listeners.append(listener)


class _Finish:
    """Runs after the callbacks of all optimizers that took part in the pass.

    All launch before one waits: ranks whose hooks fired in another order cannot block each other.
    """

    _threads = threading.local()

    def __init__(self) -> None:
        self.listeners: list[Listener] = []

    @staticmethod
    def of_this_pass() -> _Finish:
        """That of the pass that is ending on this thread."""
        finish: _Finish | None = getattr(_Finish._threads, "current", None)
        if finish is None:
            finish = _Finish._threads.current = _Finish()
            _queue(_Notice(finish.run, finish.fail))
        return finish

    def run(self) -> None:
        _Finish._threads.current = None
        self.listeners.sort(key=lambda listener: listener.serial)
        errors: list[BaseException] = []
        for step in ("launch", "complete"):
            for listener in self.listeners:
                left = next((error for error in errors if isinstance(error, PlanLeftError)), None)
                if left is not None:  # no part of a pass that has failed on a peer can complete
                    listener.abandon(str(left))
                    continue
                try:
                    getattr(listener, step)()
                except BaseException as error:  # the others must not stay behind with buckets in flight
                    errors.append(error)
        if errors:
            raise errors[0]

    def fail(self) -> None:
        _Finish._threads.current = None
        for listener in self.listeners:
            listener.failed(_exception_in_flight())


def _queue(callback: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _exception_in_flight() -> str:
    """What the failing backward pass is about to raise, where Python knows it.

    C++ has fetched the exception from the interpreter, and puts it back when it reaches the program. Until then
    it is the youngest object that is an exception; errors of C++ are no objects yet. Among older objects there may be
    others that somebody has kept, which have a traceback.
    """
    for generation in range(3):
        for candidate in reversed(gc.get_objects(generation=generation)):
            if issubclass(type(candidate), BaseException) and (generation == 0 or candidate.__traceback__ is None):
                text = f"{type(candidate).__name__}: {candidate}"
                return text if len(text) <= 500 else text[:500] + "..."
    return "an exception in backward()"


def _enclosing_node() -> Any:
    """The autograd node whose backward started the current graph task, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in _NODE_FRAMES:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None
