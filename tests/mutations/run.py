"""Puts small faults into a copy of the sources, one at a time, and sees whether the tests find them.

    make mutations                                   all of them, about an hour and a half on 2 cores
    python tests/mutations/run.py --only bell ring   those whose title has one of the words

The copy is build/mutations: `base` is built once, and a mutation is put into a fresh copy of it, `mutant`, so that
only what depends on the mutated file is compiled. First each check must pass on the base. Then a table:

    found      FILE: what is wrong     seconds     by which check and test
    SURVIVED   ...          no check failed: a test is missing, or the mutation changes nothing
    ERROR      ...          its text is not there exactly once, a check names no test, or what came of it is no C++

The exit status is 0 if all were found.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runner.launch import ROOT

from mutations.mutation import Mutation, known
from mutations.tree import Tree

PLACE = ROOT / "build" / "mutations"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="those whose title has one of them")
    parser.add_argument(
        "--trust", action="store_true", help="do not see first whether all checks pass without any mutation"
    )
    parser.add_argument("--list", action="store_true", help="only see whether each can be tried")
    return parser.parse_args()


def tell(outcome: str, mutation: Mutation, by: str = "", began: float | None = None) -> None:
    seconds = f"{time.monotonic() - began:6.0f} s" if began is not None else ""
    print(f"{outcome:9} {mutation.title:80} {seconds}  {by}", flush=True)


def attempt(base: Tree, mutation: Mutation) -> str:
    """Puts it into a copy of the base; the outcome."""
    began = time.monotonic()
    try:
        mutant = base.copy(PLACE / "mutant")
        mutation.put_into(mutant.root)
        for check in mutation.checks:
            if by := mutant.failure(check, mutation.in_core):
                tell("found", mutation, f"{check}: {by}", began)
                return "found"
    except ValueError as error:
        tell("ERROR", mutation, str(error), began)
        return "ERROR"
    tell("SURVIVED", mutation, "", began)
    return "SURVIVED"


def main() -> int:
    options = parse()
    chosen = [one for one in known() if any(word in one.title for word in options.only)]
    lost = []
    for mutation in chosen:
        if trouble := mutation.trouble(ROOT):
            tell("ERROR", mutation, trouble)
            lost.append(mutation)
    if options.list:
        print(f"{len(chosen)} mutations, {len(lost)} that cannot be tried")
        return 1 if lost else 0

    chosen = [one for one in chosen if one not in lost]
    base = Tree.of_sources(PLACE / "base")
    checks = list(dict.fromkeys(check for one in chosen for check in one.checks))
    base.build_all(checks)
    if not options.trust:
        for check in checks:
            if by := base.failure(check, in_core=False):
                sys.exit(f"without any mutation {check} fails: {by}")
        print("without any mutation all checks pass", flush=True)
    outcomes = [attempt(base, mutation) for mutation in chosen] + ["ERROR"] * len(lost)
    print("\n" + ", ".join(f"{outcomes.count(one)} {one}" for one in ("found", "SURVIVED", "ERROR")))
    return 0 if set(outcomes) <= {"found"} else 1


if __name__ == "__main__":
    sys.exit(main())
