"""Runs a program on both sides and says how it went, the same text on every rank.

right        both sides have the same parameters, gradients and losses, all ranks the same bits
torch: ...   plain torch refuses the program, too
error: ...   a clear error on every rank, where the rules allow one; in one more pass at the end, on a rank that has
             skipped what raises on the others
WRONG ...    anything else
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from mpi4py import MPI
from net import Net
from side import Optimizers, Side
from source import Source
from verdicts import Ending, describe, difference, digest, is_clear, is_split, judged, summed_up

import ringreduce as rr

WORLD = MPI.COMM_WORLD  # verdicts do not go through what is being tested

Trained = tuple[Net, Optimizers]
Program = Callable[[Side], Trained]


class Sets:
    """The process sets of a life of the library."""

    def __init__(self) -> None:
        self.by_name = {"all": rr.global_process_set}
        size, me = rr.size(), rr.rank()
        if size > 1:
            halves = [rr.add_process_set(range(size - 1)), rr.add_process_set([size - 1])]
            self.by_name |= {"mine": halves[me == size - 1], "part": halves[0]}

    def __getitem__(self, name: str) -> rr.ProcessSet:
        return self.by_name.get(name, rr.global_process_set)


def run(program: Program, side: Side) -> tuple[Trained | None, BaseException | None]:
    """What it has trained, or what it has raised, in a __del__ too."""
    swallowed: list[BaseException] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda found: swallowed.append(found.exc_value or Exception())
    try:
        trained = program(side)
    except Exception as error:
        return None, error
    finally:
        sys.unraisablehook = hook
    return (None, swallowed[0]) if swallowed else (trained, None)


class Judge:
    def __init__(self) -> None:
        self.sets = Sets()

    def __call__(self, source: Source, set_name: str = "all") -> str:
        """The verdict. After an error the library is started anew."""
        namespace: dict[str, object] = {}
        exec(compile(f"from side import *\n{source.text}", "<program>", "exec"), namespace)
        process_set = self.sets[set_name]
        side = Side(True, process_set)
        verdict, bits, trained = self.own(namespace["program"], source, side)  # type: ignore[arg-type]
        team = sorted(process_set.registered_ranks()) if process_set.included() else [rr.rank()]
        everyone: list[Ending] = WORLD.allgather((team, verdict, bits))
        if any(is_split(everyone, ranks) for ranks, _, _ in everyone):
            if trained is not None and is_split(everyone, team):
                verdict, bits = one_more_pass(*trained, side), ""
            everyone = WORLD.allgather((team, verdict, bits))
        result = summed_up(everyone)
        if result != "right" and not result.startswith("torch"):
            self.restart()
        return result

    def own(self, program: Program, source: Source, side: Side) -> tuple[str, str, Trained | None]:
        """This rank's verdict, a digest of its parameters and gradients, and what it has trained."""
        plain = Side(False, side.set)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, error = run(program, plain)
            if error is not None:
                return f"torch: {describe(error)}", "", None
            found, error = run(program, side)
        if error is not None:
            return judged(error, source), "", None
        assert expected is not None
        assert found is not None
        rounding = 0.0 if side.size == 1 and source.exact_alone else source.rounding
        verdict = difference(expected[0], plain, found[0], side, rounding) or "right"
        return verdict, digest(found[0], side), found

    def restart(self) -> None:
        rr.shutdown()
        WORLD.Barrier()
        rr.init()
        self.sets = Sets()


def one_more_pass(model: Net, optimizers: Optimizers, side: Side) -> str:
    """The verdict of a rank that came to the end where others got an error: the next reduction must tell it."""
    try:
        for o in optimizers:
            o.zero_grad()
        side.loss(model, 0).backward()
        side.synchronize(optimizers)
    except Exception as error:
        heard = is_clear(error) and isinstance(error, rr.RingreduceError)
        return f"{'error' if heard else 'WRONG'}: {describe(error)}, in one more pass"
    return "WRONG: others got an error, of which one more pass says nothing"


def compare(program: Program, process_set: str = "all", rounding: float = 1e-5) -> None:
    """For a program in a file of its own: PYTHONPATH=tests/idioms mpirun -np 2 python FILE."""
    torch.set_num_threads(1)
    rr.init()
    judge = Judge()
    verdict, bits, _ = judge.own(program, Source("", {}, rounding), Side(True, judge.sets[process_set]))
    print(f"rank {rr.rank()}: {verdict} (bits {bits[:8]})", flush=True)
