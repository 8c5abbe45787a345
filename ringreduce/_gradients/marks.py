"""What travels in the tail of the last bucket, beside the gradients: no message of its own.

    presence | late | steps: bits b of 8, then 1 - b | digest of parameters: bits b of 64, then 1 - b |

A reduction can only add. A mark that any rank sets is nonzero afterwards on all of them. For a number,
each bit b goes in as the pair (b, 1 - b): if both are nonzero afterwards, ranks differ. This works in
every dtype, under Sum and Average, and gives the same answer on every rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 8
COUNT = 1 + 2 * _BITS


class Marks(NamedTuple):
    """What the ranks say, or are found to have said."""

    late: bool  # a gradient came again after its bucket was launched: one more reduction
    steps_differ: bool  # the ranks have taken different numbers of steps


def write(tail: Tensor, late: bool, steps: int) -> None:
    """This rank's marks into a tail of COUNT elements."""
    bits = [(steps >> bit) & 1 for bit in range(_BITS)]
    tail.copy_(torch.tensor([int(late), *bits, *(1 - bit for bit in bits)], dtype=torch.float32, device="cpu"))


def read(tail: Tensor) -> Marks:
    """What a reduced tail says."""
    late, *bits = (tail != 0).tolist()
    return Marks(late, any(a and b for a, b in zip(bits[:_BITS], bits[_BITS:], strict=True)))
