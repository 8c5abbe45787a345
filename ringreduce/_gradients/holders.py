"""Does the program still hold memory that was handed out? The use count of a storage tells.

Whoever holds a tensor, a view of it, or a numpy array over it, holds a reference to its storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

_count = getattr(torch._C, "_storage_Use_Count", None)
CAN_COUNT = _count is not None  # torch before 2.1 cannot: then whatever was handed out counts as held


def use_count(memory: Tensor) -> int:
    """How many references there are to the storage of a tensor."""
    storage = memory.untyped_storage()
    return int(_count(storage._cdata)) if _count is not None else 1 << 30


class Watched:
    """Memory that will be handed out: `tensor`, and whether anybody but its owner refers to it.

    Args:
        tensor: the only one of its storage.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._ours = use_count(tensor)

    def is_held(self, *also_ours: Tensor | None) -> bool:
        """Whether there are more references than at the beginning, and than the owner's own others, if they are any."""
        others = sum(
            other is not None and other is not self.tensor and shares(other, self.tensor) for other in also_ours
        )
        return not CAN_COUNT or use_count(self.tensor) > self._ours + others


def shares(tensor: Tensor, memory: Tensor) -> bool:
    """Whether a tensor lies in the storage of another one."""
    if tensor.layout is not torch.strided:
        return False
    return bool(tensor.untyped_storage()._cdata == memory.untyped_storage()._cdata)
