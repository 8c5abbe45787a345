"""Does the program still hold memory that was handed out? The use count of a storage tells.

Whoever holds a tensor, a view of it, or a numpy array over it, holds a reference to its storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

_count = getattr(torch._C, "_storage_Use_Count", None)
CAN_COUNT = _count is not None  # torch before 2.1 cannot: then whatever was handed out counts as held


def use_count(storage: torch.UntypedStorage) -> int:
    """How many references there are to a storage, `storage` among them."""
    return int(_count(storage._cdata)) if _count is not None else 1 << 30


def is_held(memory: Tensor, handed: Tensor | None) -> bool:
    """Whether anybody but the caller refers to the storage of `memory`.

    Args:
        memory: a tensor, the only one of its storage that the caller has.
        handed: another tensor of the caller's, which counts if it is one of the same storage.
    """
    storage = memory.untyped_storage()
    ours = 2  # `memory` and `storage`
    if handed is not None and handed is not memory and handed.layout is torch.strided:
        ours += handed.untyped_storage()._cdata == storage._cdata
    return use_count(storage) > ours
