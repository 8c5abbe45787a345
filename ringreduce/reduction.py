"""Reduction operations, with the numbers that Horovod gives them (2, Adasum, is not offered)."""

from __future__ import annotations

import enum


class ReduceOp(enum.IntEnum):
    """How a collective combines the values of the ranks.

    ``Average`` is ``Sum`` times 1/size; on integers the product is truncated toward zero.
    """

    Average = 0
    Sum = 1
    Min = 3
    Max = 4
    Product = 5


Average = ReduceOp.Average
Sum = ReduceOp.Sum
Min = ReduceOp.Min
Max = ReduceOp.Max
Product = ReduceOp.Product
