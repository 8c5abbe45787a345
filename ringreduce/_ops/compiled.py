"""Programs under torch.compile: what this library does is never traced, and compiled autograd is noticed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# Whether torch.compile is looking at the caller's code rather than running it.
is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)

# The same, but for torch.export's tracing by running, which gives no plain tensors: in less time.
is_traced: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_dynamo_compiling", is_compiling)

# What torch.compile has put in the interpreter's way, to look at each function that is called; or None.
_eval_frame = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
looker: Callable[[], Any] = getattr(_eval_frame, "get_eval_frame_callback", lambda: None)

_disable: Callable[[Any], Any] = getattr(torch, "_disable_dynamo", lambda function: function)


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: torch.compile leaves a call of the function as it is. Other calls cost next to nothing more."""
    broken_out: Callable[P, R] = _disable(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling() or looker() is not None:
            return broken_out(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def is_compiled_autograd() -> bool:
    """Whether compiled autograd runs the backward pass."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    flags = ("compiled_autograd_enabled", "in_compiled_autograd_region")
    return any(getattr(module, flag, False) for flag in flags)
