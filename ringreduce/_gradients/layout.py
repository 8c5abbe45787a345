"""Which gradient goes where: the layout of the buckets, as pure functions.

    bucket   | view of p7 |pad| view of p6 |pad| view of p5 |pad| presence: p7 p6 p5 | marks |

Parameters are laid in the order in which their gradients arrive, so that a bucket is full
early and its reduction overlaps the rest of backward. Behind them is a tail with one element for
each parameter: 1 where this rank has a gradient, 0 where it has none. After the reduction zero
means that no rank had one, in every operation that is allowed (Average and Sum). The last bucket,
which every rank launches when its backward pass has ended, also has the presence of parameters of
which no gradient was ever seen, and marks (marks.py). Where there is no dense gradient it is all tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIRST_BUCKET_BYTES = 1 << 20  # small, so that communication begins early
BUCKET_BYTES = 25 << 20
_ALIGNMENT = 64  # bytes: views begin on cache lines


@dataclass
class Bucket:
    """Parameters (by index) that are reduced together, in elements of `dtype`."""

    dtype: torch.dtype
    members: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # of each member's view, in elements
    end: int = 0  # of the views; the tail follows
    unseen: list[int] = field(default_factory=list)  # parameters of which only the presence is here
    marks: int = 0  # elements at the end

    @property
    def presence(self) -> int:
        """Elements that say who has a gradient: of `members`, then of `unseen`."""
        return len(self.members) + len(self.unseen)

    @property
    def elements(self) -> int:
        """Views and tail."""
        return self.end + self.presence + self.marks

    def add(self, index: int, numel: int) -> None:
        """Append a parameter of `numel` elements."""
        self.members.append(index)
        self.offsets.append(self.end)
        step = max(1, _ALIGNMENT // self.dtype.itemsize)
        self.end += -(-numel // step) * step


def lay_out(
    order: Sequence[int],
    numels: Sequence[int],
    dtypes: Sequence[torch.dtype],
    first_bytes: int = FIRST_BUCKET_BYTES,
    bucket_bytes: int = BUCKET_BYTES,
) -> list[Bucket]:
    """Buckets for the parameters in `order`, in the order in which they fill.

    A bucket holds one dtype and is closed once it has reached its size.
    """
    closed: list[Bucket] = []
    filling: dict[torch.dtype, Bucket] = {}
    for index in order:
        dtype = dtypes[index]
        bucket = filling.setdefault(dtype, Bucket(dtype))
        bucket.add(index, numels[index])
        if bucket.end * dtype.itemsize >= (bucket_bytes if closed else first_bytes):
            closed.append(filling.pop(dtype))
    place = {index: at for at, index in enumerate(order)}
    return closed + sorted(filling.values(), key=lambda bucket: place[bucket.members[-1]])


def view_like(flat: Tensor, offset: int, parameter: Tensor) -> Tensor:
    """A part of `flat`, from element `offset` on, with the parameter's shape, and its strides where they fill memory.

    These are the strides that autograd gives the gradient, so optimizers and foreach
    kernels take the same paths as without buckets.
    """
    if not is_dense(parameter):
        return flat[offset : offset + parameter.numel()].view(parameter.shape)
    return flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset() + offset)


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a range of memory, each position once."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
