"""Where an optimizer stands in its step, and what leads from where to where: one table.

    BETWEEN ──first gradient──► PASS ──its end──► BETWEEN ──everything launched──► REDUCING ──reduced──► BETWEEN
                                  │                                                    │
                                  └── an exception: what was not reduced is dropped ───┴──► BETWEEN

A pass that only accumulates ends without a launch. What launches and waits is step.py.
"""

from __future__ import annotations

import enum


class Event(enum.Enum):
    """What moves an optimizer from one phase to another."""

    GRADIENT = enum.auto()  # the first one of a backward pass has come
    END = enum.auto()  # of the pass
    LAUNCH = enum.auto()  # of all that is left of the step
    REDUCED = enum.auto()  # all buckets, on all ranks
    UNDONE = enum.auto()  # nothing of this step was reduced: its gradients are local again
    DROPPED = enum.auto()  # nothing of this step stays: its pass has failed
    CLEARED = enum.auto()  # zero_grad() was called


class Phase(enum.IntEnum):
    """Where an optimizer stands."""

    BETWEEN = 0
    PASS = 1  # gradients are coming
    REDUCING = 2  # all buckets are launched

    def after(self, event: Event) -> Phase:
        """The next phase. AssertionError where the program must not do that now."""
        following = _TABLE[event][self]
        if not isinstance(following, Phase):
            raise AssertionError(following)
        return following


IN_BACKWARD = "backward() while gradients are being reduced; call synchronize() first"
IN_CLEARING = "zero_grad() while gradients are being reduced; call it before backward() or after step()"
_NEVER = "an event in a phase in which it cannot be"

# fmt: off
_TABLE: dict[Event, tuple[Phase | str, Phase | str, Phase | str]] = {
    # in              BETWEEN         PASS           REDUCING
    Event.GRADIENT: (Phase.PASS,     _NEVER,        IN_BACKWARD),
    Event.END:      (_NEVER,         Phase.BETWEEN, _NEVER),
    Event.LAUNCH:   (Phase.REDUCING, _NEVER,        _NEVER),
    Event.REDUCED:  (_NEVER,         _NEVER,        Phase.BETWEEN),
    Event.UNDONE:   (Phase.BETWEEN,  Phase.PASS,    Phase.BETWEEN),
    Event.DROPPED:  (Phase.BETWEEN,  Phase.BETWEEN, Phase.BETWEEN),
    Event.CLEARED:  (Phase.BETWEEN,  Phase.BETWEEN, IN_CLEARING),
}
# fmt: on
