"""Random training programs, the same in every run; search.py runs others by hand."""

from __future__ import annotations

from judge import WORLD
from search import search, summary

PROGRAMS, SEED = 200, 11


def test_random_programs(rr):
    found = list(search(PROGRAMS, SEED))  # nothing on ranks other than 0, which only take part
    failures, counts = WORLD.bcast(([failure for failure, _ in found if failure], found[-1][1] if found else None))
    assert not failures, failures[0]
    assert counts["right"] >= 0.9 * PROGRAMS, f"too few programs end right:\n{summary(counts)}"
