"""A program as Python: `source` writes the lines that `judge` runs and `search` prints.

Actions that make no sense where they stand are left out, so that any part of a program is a program.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from actions import Actions
from program import TAKE_SPARSE, Program

HEAD = "from judge import compare\nfrom side import *\n\n\n"
EARLY_HOOKS = (
    "",
    "model.one.weight.register_hook(lambda g: g * 3)",
    "model.one.weight.register_post_accumulate_grad_hook(lambda p: (p.grad.mul_(2), None)[1])",
    'model.one.weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad * 2))',
)


@dataclass(frozen=True)
class Source:
    text: str  # defines program(side)
    allowed: dict[int, str]  # line (from 1) from which on an error is allowed, and why
    rounding: float  # how far the two sides may be apart, relative to the largest number of a tensor
    exact_alone: bool = True  # a set of one rank comes to the very bits of plain torch

    def show(self, process_set: str = "all") -> str:
        """What to put into a file and run with mpirun."""
        return f"{HEAD}{self.text}\n\ncompare(program, {process_set!r}, rounding={self.rounding})\n"


def source(program: Program, without: Sequence[str] = ()) -> Source:
    """`without`: texts; actions in whose lines one of them is are left out."""
    writer = Actions(program, double=program.double or program.optimizer == "LBFGS")
    begin(writer, program)
    for name, variant, batch in program.actions:
        before = copy.deepcopy(writer) if without else writer
        at = len(writer.lines)
        getattr(writer, f"do_{name}")(variant, batch)
        if any(text in line for text in without for line in writer.lines[at:]):
            writer = before
    writer.end()
    text = "def program(side):\n" + "".join(f"    {line}\n" for line in writer.lines)
    allowed = {line + 2: why for line, why in writer.allowed.items()}
    return Source(text, allowed, writer.rounding(), exact_alone="sparse" not in program.features)


def begin(writer: Actions, program: Program) -> None:
    features = [f for f in program.features if f != "sparse" or program.optimizer in TAKE_SPARSE]
    made = [f'"{" ".join(features)}"'] if features else []
    made += ["dtype=torch.float64"] if writer.double else []
    writer.add(f"model = Net({', '.join(made)})")
    if program.early_hook:
        writer.add(EARLY_HOOKS[program.early_hook])
    options = ["model.named_parameters()"] if program.named else []
    if program.passes > 1:
        options.append(f"backward_passes_per_step={program.passes}")
    if program.op != "Average":
        options.append(f"op=rr.{program.op}")
    elif program.predivide:
        options.append("gradient_predivide_factor=2.0")
    if program.groups:
        options.append(f"num_groups={program.groups}")
    if program.sparse_as_dense:
        options.append("sparse_as_dense=True")
    writer.options = "".join(f", {option}" for option in options)
    writer.wrap()
