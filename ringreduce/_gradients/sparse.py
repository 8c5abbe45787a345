"""Sparse gradients: gathered (indices and values), merged, never made dense.

rank 0   rows 3 7      ┐
rank 1   (no gradient) ├─ allgather ─►  3 7 7 9  ─ coalesce ─►  3 7 9
rank 2   rows 7 9      ┘
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringreduce._ops import gpus, submit
from ringreduce._ops.handle import Handle
from ringreduce._runtime.process_set import ProcessSet


class SparseReduction:
    """One parameter's gradient on its way. `gradient` is None where this rank has none."""

    def __init__(self, name: str, parameter: Tensor, gradient: Tensor | None, process_set: ProcessSet) -> None:
        self._shape = parameter.shape
        self._gradient = gradient
        self._alone = process_set.size() == 1
        self._handles: list[Handle[tuple[Tensor, list[int]]]] = []
        if self._alone:
            return
        rows = torch.empty(0, dtype=torch.int64, device=parameter.device)
        values = torch.empty((0, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
        if gradient is not None:
            compact = _row_sparse(gradient).coalesce()
            rows, values = compact.indices()[0], compact.values()
        self._handles = [
            submit.allgather(rows, f"sparse.{name}.rows", process_set),
            submit.allgather(values, f"sparse.{name}.values", process_set),
        ]

    def result(self, factor: float) -> Tensor | None:
        """The sum over all ranks times `factor`, coalesced; None where no rank had a gradient."""
        if self._alone:
            gradient = self._gradient
            return gradient if gradient is None or factor == 1.0 else gradient * factor
        (rows, _), (values, _) = [handle.wait() for handle in self._handles]
        if rows.numel() == 0 and self._gradient is None:
            return None
        if factor != 1.0:
            values = values * factor
        if gpus.backend.holds(values) and values.dtype.is_floating_point:
            rows, values = gpus.merge_rows(rows, values)
            return torch.sparse_coo_tensor(
                rows.unsqueeze(0), values, self._shape, is_coalesced=True, check_invariants=False
            )
        return torch.sparse_coo_tensor(rows.unsqueeze(0), values, self._shape, check_invariants=False).coalesce()


def _row_sparse(gradient: Tensor) -> Tensor:
    """The gradient as a sparse tensor over dimension 0 with dense rows."""
    if not gradient.is_sparse:
        return gradient.to_sparse(1)
    if gradient.sparse_dim() == 1:
        return gradient
    gradient = gradient.coalesce()
    first, *others = gradient.indices().unbind()
    rows, place = torch.unique(first, return_inverse=True)
    values = torch.zeros((rows.numel(), *gradient.shape[1:]), dtype=gradient.dtype, device=gradient.device)
    values.index_put_((place, *others), gradient.values())
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, gradient.shape, check_invariants=False)
