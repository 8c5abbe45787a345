"""Random training programs, the same in every run; search.py runs others by hand."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import pytest
from judge import WORLD, Judge
from program import Program
from search import search, summary
from source import source


@pytest.fixture(autouse=True)
def _a_life_of_its_own(rr):
    """The process sets of an earlier judge end with the one before."""
    rr.shutdown()
    rr.init()


@pytest.mark.parametrize("programs", [200])
def test_random_programs(rr, programs):
    failure, counts = "", Counter[str]()
    with closing(search(programs, number=11)) as batches:  # none on ranks other than 0, which only take part
        for failure, counts in batches:  # noqa: B007
            if failure:
                break
    failure, counts = WORLD.bcast((failure, counts))
    assert not failure, failure
    assert counts["right"] >= 0.9 * sum(counts.values()), f"too few programs end right:\n{summary(counts)}"


def test_who_skips_what_fails_elsewhere_is_told_in_one_more_pass(rr):
    """Rank 0 skips a step for which rank 1 has nothing but gradients that were unscaled too early."""
    if rr.size() == 1:
        pytest.skip("needs 2 ranks")
    judge = Judge()
    verdict = judge(source(Program((("scaler", 0, 0),), passes=2)))
    judge.restart()
    assert verdict.startswith("error"), verdict
