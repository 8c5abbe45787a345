"""What travels in the tail of the last bucket, beside the gradients: no message of its own.

    presence | late | steps | lost | digest of parameters: bits b of 64, then 1 - b |

A reduction can only add. A mark that any rank sets is nonzero afterwards on all of them. A number goes in bit
by bit, each b as the pair (b, 1 - b): if both are nonzero afterwards, ranks differ. This works in every dtype,
under Sum and Average, and gives the same answer on every rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 8  # of a number


class Counts(NamedTuple):
    """What all ranks must have in common."""

    steps: int = 0  # that the optimizer has taken
    lost: int = 0  # backward passes that only accumulated, and failed


class Marks(NamedTuple):
    """What the ranks say, or are found to have said."""

    late: bool = False  # a gradient came again after its bucket was launched: one more reduction
    steps_differ: bool = False
    lost_differ: bool = False


COUNT = 1 + len(Counts._fields) * 2 * _BITS


def write(tail: Tensor, late: bool, counts: Counts) -> None:
    """This rank's marks into a tail of COUNT elements."""
    marks = [int(late)]
    for count in counts:
        bits = [(count >> bit) & 1 for bit in range(_BITS)]
        marks += bits + [1 - bit for bit in bits]
    tail.copy_(torch.tensor(marks, dtype=torch.float32, device="cpu"))


def read(tail: Tensor) -> Marks:
    """What a reduced tail says."""
    late, *bits = (tail != 0).tolist()
    pairs = [bits[at : at + 2 * _BITS] for at in range(0, len(bits), 2 * _BITS)]
    return Marks(late, *(any(map(all, zip(pair[:_BITS], pair[_BITS:], strict=True))) for pair in pairs))
