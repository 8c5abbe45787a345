"""Programs under torch.compile: what this library does is never traced, and compiled autograd is noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

# Whether torch.compile is looking at the caller's code rather than running it.
is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def _call(function: Callable[[], None]) -> None:
    function()


# Calls a function that torch.compile leaves as it is.
untraced: Callable[[Callable[[], None]], None] = getattr(torch, "_disable_dynamo", lambda function: function)(_call)


def is_compiled_autograd() -> bool:
    """Whether compiled autograd runs the backward pass."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    flags = ("compiled_autograd_enabled", "in_compiled_autograd_region")
    return any(getattr(module, flag, False) for flag in flags)
