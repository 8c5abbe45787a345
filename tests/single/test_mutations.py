"""Every mutation can be tried: its text is in the sources exactly once, and its checks name tests."""

from __future__ import annotations

import re
from pathlib import Path

from mutations.mutation import Mutation, known

ROOT = Path(__file__).resolve().parents[2]


def test_every_mutation_can_be_tried():
    troubles = {mutation.title: mutation.trouble(ROOT) for mutation in known()}
    assert {title: trouble for title, trouble in troubles.items() if trouble} == {}


def test_titles_tell_them_apart():
    titles = [mutation.title for mutation in known()]
    assert len(titles) == len(set(titles))
    assert titles


def test_what_cannot_be_tried_is_told():
    alone = Mutation("phases.py", "no such text", ["there is no such line"], [], ["single phases"])
    assert "0 times" in alone.trouble(ROOT)
    twice = Mutation("phases.py", "text of many lines", ["Phase"], [], ["single phases"])
    assert re.search(r"is ([2-9]|\d\d+) times", twice.trouble(ROOT))
    there = ["    BETWEEN = 0"]
    assert Mutation("phases.py", "no check", there).trouble(ROOT) == "it has no check"
    for check in ("native test_nothing", "native test_mailbox:no_such_case", "single no_word", "split 1+3 no_word"):
        assert Mutation("phases.py", "no test", there, [], [check]).trouble(ROOT) == f"{check!r} names no test"
    for check in ("native test_mailbox", "native test_mailbox:in_order", "single phases", "parallel 3 test_no_sync"):
        assert not Mutation("phases.py", "can be tried", there, [], [check]).trouble(ROOT)
