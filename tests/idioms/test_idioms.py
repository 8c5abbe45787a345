"""Random training programs, the same in every run; search.py runs others by hand."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

from judge import WORLD
from search import search, summary

PROGRAMS, SEED = 200, 11


def test_random_programs(rr):
    failure, counts = "", Counter[str]()
    with closing(search(PROGRAMS, SEED)) as batches:  # none on ranks other than 0, which only take part
        for failure, counts in batches:  # noqa: B007
            if failure:
                break
    failure, counts = WORLD.bcast((failure, counts))
    assert not failure, failure
    assert counts["right"] >= 0.9 * sum(counts.values()), f"too few programs end right:\n{summary(counts)}"
