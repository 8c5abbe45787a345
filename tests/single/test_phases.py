"""The table of phases: what an optimizer may do when, and what it is told otherwise."""

from __future__ import annotations

from contextlib import suppress

import pytest

from ringreduce._gradients.group import Group
from ringreduce._gradients.phases import Event, Phase


def test_a_step():
    phase = Phase.BETWEEN
    for event in (Event.GRADIENT, Event.END, Event.LAUNCH, Event.REDUCED):
        phase = phase.after(event)
    assert phase is Phase.BETWEEN


@pytest.mark.parametrize("event", Event)
def test_each_event_leads_somewhere(event):
    following = []
    for phase in Phase:
        with suppress(AssertionError):
            following.append(phase.after(event))
    assert following


def test_a_pass_that_is_undone_goes_on_and_one_that_is_dropped_does_not():
    assert Phase.PASS.after(Event.UNDONE) is Phase.PASS
    assert Phase.PASS.after(Event.DROPPED) is Phase.BETWEEN


@pytest.mark.parametrize(("event", "text"), [(Event.GRADIENT, "backward"), (Event.CLEARED, "zero_grad")])
def test_nothing_while_gradients_are_being_reduced(event, text):
    with pytest.raises(AssertionError, match=text):
        Phase.REDUCING.after(event)


def test_a_group_of_passes():
    group = Group(2)
    syncing = []
    for _ in range(2):
        group.begin_pass(cleared=False)
        syncing.append(group.syncing)
    assert syncing == [False, True]
    with pytest.raises(AssertionError, match="backward_passes_per_step=2"):
        group.begin_pass(cleared=False)
    group.begin_pass(cleared=True)
    assert group.is_open()
    with group.hold():
        group.begin_pass(cleared=False)
        assert not group.syncing
    group.begin_pass(cleared=False)
    assert group.syncing
    group.was_reduced()
    assert (group.local, group.reduced) == (False, True)
