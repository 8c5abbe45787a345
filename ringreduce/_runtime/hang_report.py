"""Where this rank stands, for the report of a hang."""

from __future__ import annotations

import os

from ringreduce._runtime import running


def describe() -> str:
    """Several lines: this rank, and what is pending, since when, and who is missing."""
    context = running.current
    if context is None:
        return f"ringreduce is not running in process {os.getpid()}"
    where = (
        f"rank {context.rank} of {context.size} (local rank {context.local_rank} of "
        f"{context.local_size}, host {context.host_of[context.rank]}, pid {os.getpid()})"
    )
    return f"{where}\n{context.engine.state()}"
