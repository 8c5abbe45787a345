"""Reduction operations, with the numbers that Horovod gives them (2, Adasum, is not offered)."""

from __future__ import annotations

import enum

from ringreduce._core import REDUCE_OPS


class ReduceOp(enum.IntEnum):
    """How a collective combines the values of the ranks.

    ``Average`` is ``Sum`` times 1/size; on integers the product is truncated toward zero.
    """

    Average = 0
    Sum = 1
    Min = 3
    Max = 4
    Product = 5


# The core's table is what counts; here it is written down for readers and for type checkers.
if [(op.name, op.value) for op in ReduceOp] != [(name, number) for name, number, _ in REDUCE_OPS]:
    raise ImportError(f"ReduceOp {list(ReduceOp)} and the core {REDUCE_OPS} have different operations")

# For each the names of the dtypes for which it has no meaning.
MEANINGLESS = {ReduceOp(number): frozenset(dtypes) for _, number, dtypes in REDUCE_OPS}

Average = ReduceOp.Average
Sum = ReduceOp.Sum
Min = ReduceOp.Min
Max = ReduceOp.Max
Product = ReduceOp.Product
