"""Runs a program on both sides and says how it went, the same text on every rank.

right        both sides have the same parameters, gradients and losses, all ranks the same bits
torch: ...   plain torch refuses the program, too
error: ...   a clear error on every rank, where the rules allow one
WRONG ...    anything else
"""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from mpi4py import MPI
from net import Net
from side import Side
from source import Source

import ringreduce as rr

WORLD = MPI.COMM_WORLD  # verdicts do not go through what is being tested
PACKAGE = str(Path(rr.__file__).parent)
CLEAR = (rr.RingreduceError, ValueError, AssertionError, TypeError)


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


def run(program: Callable[[Side], Net], side: Side) -> tuple[Net | None, BaseException | None]:
    """The model that it has trained, or what it has raised, in a __del__ too."""
    swallowed: list[BaseException] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda found: swallowed.append(found.exc_value or Exception())
    try:
        model = program(side)
    except Exception as error:
        return None, error
    finally:
        sys.unraisablehook = hook
    return (None, swallowed[0]) if swallowed else (model, None)


class Judge:
    def __init__(self) -> None:
        self.sets = Sets()

    def __call__(self, source: Source, set_name: str = "all") -> str:
        """The verdict. After an error the library is started anew."""
        namespace: dict[str, object] = {}
        exec(compile(f"from side import *\n{source.text}", "<program>", "exec"), namespace)
        verdict, bits = self.own(namespace["program"], source, self.sets[set_name])  # type: ignore[arg-type]
        team = sorted(self.sets[set_name].registered_ranks()) if self.sets[set_name].included() else [rr.rank()]
        everyone = WORLD.allgather((team, verdict, bits))
        result = summed_up(everyone)
        if result != "right" and not result.startswith("torch"):
            self.restart()
        return result

    def own(self, program: Callable[[Side], Net], source: Source, process_set: rr.ProcessSet) -> tuple[str, str]:
        """This rank's verdict, and a digest of its parameters and gradients."""
        plain, side = Side(False, process_set), Side(True, process_set)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, error = run(program, plain)
            if error is not None:
                return f"torch: {describe(error)}", ""
            found, error = run(program, side)
        if error is not None:
            return judged(error, source), ""
        assert expected is not None
        assert found is not None
        rounding = 0.0 if side.size == 1 and source.exact_alone else source.rounding
        return difference(expected, plain, found, side, rounding) or "right", digest(found, side)

    def restart(self) -> None:
        rr.shutdown()
        WORLD.Barrier()
        rr.init()
        self.sets = Sets()


def summed_up(everyone: list[tuple[list[int], str, str]]) -> str:
    """One verdict out of all ranks'; ranks of a team have to agree."""
    verdicts = [verdict for _, verdict, _ in everyone]
    disagree = any(len({kind(verdicts[rank]) for rank in team}) > 1 for team, _, _ in everyone)
    if disagree or any(verdict.startswith("WRONG") for verdict in verdicts):
        by_text = {verdict: [rank for rank, v in enumerate(verdicts) if v == verdict] for verdict in verdicts}
        return "WRONG\n" + "\n".join(f"ranks {ranks}: {verdict}" for verdict, ranks in by_text.items())
    for team, _, _ in everyone:
        if len({everyone[rank][2] for rank in team}) > 1:
            return f"WRONG: ranks {team} have the right numbers, but not the same bits"
    return next((v for v in verdicts if v.startswith("error")), verdicts[0])


def kind(verdict: str) -> str:
    """right, torch, error or WRONG; who raises and who is told of it have errors of other types."""
    return verdict.split()[0]


def describe(error: BaseException) -> str:
    """Its type and first line, with nothing in it that differs from program to program."""
    text = (str(error).splitlines() or [""])[0]
    for pattern, name in ((r"'[^']*'", "'...'"), (r"0x[0-9a-f]+|[0-9]+", "N")):
        text = re.sub(pattern, name, text)
    return f"{type(error).__name__}: {text[:160]}"


def judged(error: BaseException, source: Source) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno or 0 for frame in frames if frame.filename == "<program>"), 0) - 1
    line = next((f.lineno or 0 for f in frames if f.filename == "<program>" and f.name == "program"), line + 1) - 1
    why = [reason for at, reason in source.allowed.items() if at <= line]
    ours = any(frame.filename.startswith(PACKAGE) for frame in frames)
    clear = ours and isinstance(error, CLEAR) and not isinstance(error, rr.RingreduceTimeoutError)
    if clear and why:
        return f"error: {describe(error)}"
    text = source.text.splitlines()
    at = text[line - 1].strip() if 0 < line <= len(text) else "?"
    return f"WRONG: {describe(error)}\n  at line {line}: {at}"


def difference(expected: Net, plain: Side, found: Net, side: Side, rounding: float) -> str:
    """What the two sides do not agree on, or nothing."""
    if not side.kept():
        return "WRONG: a kept gradient has other numbers"
    for (name, a), (_, b) in zip(side.notes, plain.notes, strict=True):
        if (a is None) != (b is None):
            return f"WRONG: {name} is {'None' if a is None else 'there'}"
        if a is not None and b is not None and (text := apart(a, b, rounding, 1e-3)):
            return f"WRONG: {name} {text}"
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        if text := apart(p.detach(), q.detach(), rounding, 1e-2):
            return f"WRONG: {name} {text}"
    return ""


def apart(a: torch.Tensor, b: torch.Tensor, rounding: float, least: float) -> str:
    """How far a is from b, if more than rounding."""
    if a.dtype != b.dtype:
        return f"has {a.dtype} instead of {b.dtype}"
    a, b = a.double(), b.double()
    if torch.equal(a.isfinite(), b.isfinite()):
        a, b = a.nan_to_num(), b.nan_to_num()
    scale = max(float(b.abs().max()), least) if b.numel() else 1.0
    far = float((a - b).abs().max()) / scale if b.numel() else 0.0
    return "" if far <= rounding else f"is {far:.1e} apart"


def digest(model: Net, side: Side) -> str:
    """Of all bits that ranks have to agree on."""
    state = hashlib.sha1()
    for t in [*model.parameters(), *(t for _, t in side.notes if t is not None)]:
        state.update(t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def compare(program: Callable[[Side], Net], process_set: str = "all", rounding: float = 1e-5) -> None:
    """For a program in a file of its own: PYTHONPATH=tests/idioms mpirun -np 2 python FILE."""
    torch.set_num_threads(1)
    rr.init()
    judge = Judge()
    verdict, bits = judge.own(program, Source("", {}, rounding), judge.sets[process_set])
    print(f"rank {rr.rank()}: {verdict} (bits {bits[:8]})", flush=True)
