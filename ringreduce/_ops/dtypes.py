"""torch dtypes and the core's codes for them: code i is the i-th name of `_core.DTYPES`."""

from __future__ import annotations

import torch

from ringreduce._core import DTYPES

NAMES: tuple[str, ...] = DTYPES
BY_CODE: tuple[torch.dtype, ...] = tuple(getattr(torch, name) for name in DTYPES)
CODES: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(BY_CODE)}
