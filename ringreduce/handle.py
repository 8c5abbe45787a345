"""Handles of asynchronous operations; ringreduce exports them too."""

from ringreduce._ops.handle import Handle, poll, synchronize

__all__ = ["Handle", "poll", "synchronize"]
