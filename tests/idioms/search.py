"""Looks for training programs that DistributedOptimizer gets wrong, and shrinks what it finds.

    mpirun -np 3 python tests/idioms/search.py --programs 20000 --seed 1

Rank 0 draws a program with hypothesis and sends it to the others; every rank runs it (`judge`).
A program that fails is shrunk the same way and printed as Python. `--without closure "op=rr.Sum"`
leaves out actions and options that have this in their text, so that a search goes on behind a fault
that is known.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

os.environ.setdefault("RINGREDUCE_TIMEOUT", "4")  # a rank that waits longer hangs

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from judge import WORLD, Judge
from program import Program, programs
from source import Source, source

import ringreduce as rr

BATCH = 250  # programs of one run of hypothesis, which ends at its first failure
LEFT_OUT = "left out"
SHRINKING = 60.0  # seconds for shrinking one


class Wrong(AssertionError):
    """A program that is silently wrong, hangs, or raises what it should not."""

    def __init__(self, program: Program) -> None:
        self.program = program


class Search:
    """Rank 0's side. `counts` says how programs ended."""

    def __init__(self, judge: Judge, without: Sequence[str] = ()) -> None:
        self.judge, self.without = judge, without
        self.counts: Counter[str] = Counter()
        self.seen: dict[str, str] = {}  # verdicts of what ran, by text
        self.give_up = float("inf")  # when shrinking ends

    def verdict(self, program: Program) -> tuple[Source, str]:
        written = source(program, self.without)
        if any(text in written.text for text in self.without):  # an option or a feature
            return written, LEFT_OUT
        key = f"{program.process_set}\n{written.text}"
        if key not in self.seen:
            if time.monotonic() > self.give_up:
                return written, "right"
            WORLD.bcast((written, program.process_set))
            self.seen[key] = self.judge(written, program.process_set)
        return written, self.seen[key]

    def check(self, program: Program) -> None:
        _, verdict = self.verdict(program)
        if self.give_up == float("inf"):
            self.counts[verdict if not verdict.startswith("WRONG") else "WRONG"] += 1
        if verdict.startswith("WRONG"):
            self.give_up = min(self.give_up, time.monotonic() + SHRINKING)
            raise Wrong(program)

    def ran(self) -> int:
        return sum(self.counts.values()) - self.counts[LEFT_OUT]

    def shrunk(self, program: Program) -> str:
        """What hypothesis has left can mostly be made smaller: without one action, or with one option less."""
        for smaller in _smaller(program):
            if self.verdict(smaller)[1].startswith("WRONG"):
                return self.shrunk(smaller)
        written, verdict = self.verdict(program)
        return f"{verdict}\n\n{written.show(program.process_set)}"

    def run(self, count: int, number: int) -> str:
        """The failure that was found first, shrunk, or nothing."""

        @seed(number)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(programs())
        def check(program: Program) -> None:
            self.check(program)

        self.seen, self.give_up = {}, float("inf")
        try:
            check()
        except Wrong as error:
            return self.shrunk(error.program)
        return ""


def _smaller(program: Program) -> Iterator[Program]:
    for i in range(len(program.actions)):
        yield replace(program, actions=program.actions[:i] + program.actions[i + 1 :])
    for i in range(len(program.features)):
        yield replace(program, features=program.features[:i] + program.features[i + 1 :])
    for option in fields(Program):
        if option.name not in ("actions", "features") and getattr(program, option.name) != option.default:
            yield replace(program, **{option.name: option.default})


def follow(judge: Judge) -> None:
    """The other ranks' side."""
    while (task := WORLD.bcast(None)) is not None:
        judge(*task)


def search(count: int, number: int, without: Sequence[str] = ()) -> Iterator[tuple[str, Counter[str]]]:
    """On every rank; on rank 0 a failure or nothing, and the counts so far, after each batch."""
    judge = Judge()
    if WORLD.rank:
        follow(judge)
        return
    try:
        finder = Search(judge, without)
        while finder.ran() < count:
            yield finder.run(min(BATCH, count), number), finder.counts
            number += 1
    finally:
        WORLD.bcast(None)


def summary(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return "\n".join(f"{n:7}  {100 * n / total:5.1f}%  {verdict}" for verdict, n in counts.most_common())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000, metavar="N", help="how many to run (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first batch (1)")
    parser.add_argument("--without", nargs="+", default=[], metavar="TEXT", help="what to leave out")
    parser.add_argument("--failures", type=int, default=10, metavar="N", help="end after so many (10)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rr.init()
    began, failures, counts = time.monotonic(), 0, Counter[str]()
    for failure, counts in search(options.programs, options.seed, options.without):
        seconds = time.monotonic() - began
        if failure:
            failures += 1
            print(f"\n--- failure {failures}, after {sum(counts.values())} programs\n{failure}", flush=True)
        else:
            print(f"{seconds:6.0f} s  {sum(counts.values())} programs, {counts['right']} right", flush=True)
        if failures == options.failures:
            break
    if WORLD.rank == 0:
        print(f"\n{summary(counts)}\n{failures} failures in {time.monotonic() - began:.0f} s", flush=True)
    rr.shutdown()
    return int(WORLD.bcast(failures) > 0)


if __name__ == "__main__":
    sys.exit(main())
