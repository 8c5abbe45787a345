"""Channels of plans: numbers that are free on all ranks of a set, for messages between hosts.

Optimizers of several threads may agree at a time, in an order that differs by rank. So a rank claims what came out of
an agreement, and if one of the ranks could not, since another agreement was quicker there, all of them try again.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ringreduce._core import Engine, agree_channel
from ringreduce._runtime import running

_FIRST = 128  # channel of a plan
_lock = threading.Lock()
_claimed: set[int] = set()  # numbers of agreements whose plans are not made yet


@contextmanager
def agreed_channel(name: str, exchange: Callable[[Any], list[Any]]) -> Iterator[int]:
    """A channel for a plan that is made within.

    Args:
        name: of the optimizer; different ones look in different places first.
        exchange: an allgather over the ranks of the set.
    """
    engine = running.require().engine
    for attempt in itertools.count():
        channel = agree_channel(exchange(engine.offer_channel()), zlib.crc32(f"{name}.{attempt}".encode()))
        mine = _claim(engine, channel)
        if all(exchange(mine)):
            break
        if mine:
            _claimed.discard(channel)
    try:
        yield channel
    finally:
        _claimed.discard(channel)


def _claim(engine: Engine, channel: int) -> bool:
    """Whether nobody else has the number by now: no plan of this rank, and no other agreement."""
    with _lock:
        free = _tags(agree_channel([engine.offer_channel()], _tags(channel) - _FIRST)) == _tags(channel)
        if not free or any(_tags(other) == _tags(channel) for other in _claimed):
            return False
        _claimed.add(channel)
        return True


def _tags(channel: int) -> int:
    """The part of a channel that must be free; the rest is a serial number (csrc/buckets/plan_channel.h)."""
    return channel & 1023
