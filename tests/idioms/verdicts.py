"""What is said of a program: the verdicts that judge.py lists, and what they are taken from."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path

import torch
from net import Net
from side import Side
from source import Source

import ringreduce as rr

PACKAGE = str(Path(rr.__file__).parent)
CLEAR = (rr.RingreduceError, ValueError, AssertionError, TypeError)

Ending = tuple[list[int], str, str]  # a rank's team, its verdict, a digest of what it has come to


def is_split(everyone: list[Ending], team: list[int]) -> bool:
    """Whether some ranks of a team got an error, and others came to the program's end."""
    return {"error:", "right"} <= {kind(everyone[rank][1]) for rank in team}


def summed_up(everyone: list[Ending]) -> str:
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
    if is_clear(error) and why:
        return f"error: {describe(error)}"
    text = source.text.splitlines()
    at = text[line - 1].strip() if 0 < line <= len(text) else "?"
    return f"WRONG: {describe(error)}\n  at line {line}: {at}"


def is_clear(error: BaseException) -> bool:
    """Whether the library has said what is wrong."""
    ours = any(frame.filename.startswith(PACKAGE) for frame in traceback.extract_tb(error.__traceback__))
    return ours and isinstance(error, CLEAR) and not isinstance(error, rr.RingreduceTimeoutError)


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
