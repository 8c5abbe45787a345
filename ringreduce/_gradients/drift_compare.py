"""Where tensors differ between ranks, by value: after their digests have said that they do.

digests of all ranks ──► majority ──► one of it broadcasts its values ──► the others count and measure
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ringreduce._gradients.drift_windows import Named
from ringreduce._ops import submit
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.objects import allgather_object

# Of the largest magnitude in the tensor. Gradients have the same bits on all ranks, so that where CPUs round
# differently a step adds about one such unit.
ROUNDING_ULPS = 8
_BATCH_BYTES = 64 << 20  # are compared at a time
_SLICE = 1 << 20  # elements


@dataclass
class Difference:
    """How one tensor differs between ranks (global ranks)."""

    name: str
    numel: int
    groups: list[list[int]]  # ranks that hold the same; first those with which the others are compared
    elements: int = 0  # most that differ on a rank
    largest: float = 0.0  # difference; infinite where one side is NaN or infinite
    rounding: bool = True  # all differences are of rounding

    @property
    def odd(self) -> list[int]:
        """The ranks that differ from the majority; none where there is no majority."""
        if len(self.groups[0]) == len(self.groups[1]):
            return []
        return sorted(rank for group in self.groups[1:] for rank in group)

    def __str__(self) -> str:
        infinite = math.isinf(self.largest)
        by = "a NaN or an infinity among them" if infinite else f"by up to {self.largest:.3g}"
        count = f"({self.elements:,} of {self.numel:,} elements, {by})"
        if not self.odd:
            sides = [ranks_text(group) for group in self.groups]
            everyone = ranks_text(sorted(rank for group in self.groups for rank in group))
            between = " and ".join(sides) if len(sides) == 2 else everyone
            return f"{self.name!r} differs between {between} {count}"
        agreeing = self.groups[0]
        verb = "agrees" if len(agreeing) == 1 else "agree"
        return f"{self.name!r} differs on {ranks_text(self.odd)} {count}; {ranks_text(agreeing)} {verb}"


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 2" or "ranks 0, 1, 3"."""
    shown = ", ".join(str(rank) for rank in ranks[:8])
    more = f", ... ({len(ranks)} ranks)" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def unequal(digests: Sequence[Sequence[int]]) -> list[int]:
    """Places at which the ranks' lists of digests differ."""
    return [place for place, column in enumerate(zip(*digests, strict=True)) if len(set(column)) > 1]


def compare(
    named: Sequence[Named], digests: Sequence[Sequence[int]], process_set: ProcessSet, enough: int = 1
) -> list[Difference]:
    """With all ranks of the set: how the tensors differ whose digests do.

    Args:
        named: names, shapes and dtypes are the same on all ranks.
        digests: by rank, one of each tensor.
        enough: more differences than so many (not counting those of rounding) need not be looked for.

    Tensors that are equal by now are left out.
    """
    found: list[Difference] = []
    for batch in _batches(named, unequal(digests)):
        differences = [_groups(named[place], [of_rank[place] for of_rank in digests], process_set) for place in batch]
        mine = _measure_all([named[place][1] for place in batch], differences, process_set)
        for measured in allgather_object(mine, "ringreduce.drift.measured", process_set):
            for difference, (elements, largest, rounding) in zip(differences, measured, strict=True):
                difference.elements = max(difference.elements, elements)
                difference.largest = max(difference.largest, largest)
                difference.rounding &= rounding
        found += [difference for difference in differences if difference.elements]
        if sum(not difference.rounding for difference in found) >= enough:
            break
    return found


def _batches(named: Sequence[Named], places: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    nbytes = 0
    for place in places:
        batch.append(place)
        nbytes += named[place][1].nbytes
        if nbytes >= _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _groups(named: Named, column: Sequence[int], process_set: ProcessSet) -> Difference:
    groups: dict[int, list[int]] = {}
    for rank, digest in zip(process_set.registered_ranks(), column, strict=True):
        groups.setdefault(digest, []).append(rank)
    largest_first = sorted(groups.values(), key=lambda ranks: (-len(ranks), ranks[0]))
    return Difference(named[0], named[1].numel(), largest_first)


def _measure_all(
    tensors: Sequence[Tensor], differences: Sequence[Difference], process_set: ProcessSet
) -> list[tuple[int, float, bool]]:
    """How this rank's tensors differ from those of each first group."""
    mine = [_on_cpu(tensor) for tensor in tensors]
    theirs = [flat.clone() for flat in mine]
    handles = [
        submit.broadcast(flat.view(torch.uint8), difference.groups[0][0], True, f"ringreduce.drift.{at}", process_set)
        for at, (flat, difference) in enumerate(zip(theirs, differences, strict=True))
    ]
    for handle in handles:
        handle.wait()
    return [measure(a, b) for a, b in zip(mine, theirs, strict=True)]


def _on_cpu(tensor: Tensor) -> Tensor:
    """The elements in the order of their indices, which does not depend on how a rank has laid them out."""
    return tensor.detach().to("cpu", copy=True).resolve_conj().resolve_neg().reshape(-1).contiguous()


def measure(a: Tensor, b: Tensor) -> tuple[int, float, bool]:
    """Between flat tensors: elements whose bits differ, the largest difference, and whether it is only rounding."""
    elements, largest, magnitude = 0, 0.0, 0.0
    if not a.numel():
        return elements, largest, True
    for x, y in zip(
        torch.split(a, _SLICE), torch.split(b, _SLICE), strict=True
    ):  # what follows takes 40 bytes an element
        bits = x.unsqueeze(1).view(torch.uint8) != y.unsqueeze(1).view(torch.uint8)
        elements += int(bits.any(1).sum())
        of_slice = _gap(*((torch.view_as_real(x), torch.view_as_real(y)) if x.is_complex() else (x, y)))
        largest, magnitude = max(largest, of_slice[0]), max(magnitude, of_slice[1])
    eps = torch.finfo(a.dtype).eps if a.is_floating_point() or a.is_complex() else 0.0
    return elements, largest, largest <= ROUNDING_ULPS * eps * magnitude


def _gap(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The largest difference, infinite between a number and none, and the largest finite magnitude."""
    x, y = a.double(), b.double()
    gap = (x - y).abs()
    gap[(x == y) | (x.isnan() & y.isnan())] = 0.0
    magnitude = torch.maximum(x.abs(), y.abs()).nan_to_num(nan=0.0, posinf=0.0)
    return float(gap.nan_to_num(nan=math.inf, posinf=math.inf).max()), float(magnitude.max())
