"""From parameters to a plan: what the ranks agree on once, and the buckets that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ringreduce import _agreement, _context, _gpu
from ringreduce._buckets import BUCKET_BYTES, Bucket, lay_out
from ringreduce._core import agree_channel
from ringreduce._options import Options
from ringreduce._plan import GradientPlan
from ringreduce._slots import Kind, Slot
from ringreduce.compression import effective
from ringreduce.objects import allgather_object


class Agreed(NamedTuple):
    """The same on all ranks, as are the kinds of the slots."""

    order: list[int]  # of the slots in the buckets
    channel: int


def agree(slots: Sequence[Slot], arrivals: Sequence[int], options: Options) -> Agreed:
    """With all ranks of the set: compare the parameters, and learn which gradients there are.

    Sets the kind of each slot. `arrivals` is the order in which this rank's gradients came;
    rank 0's counts. Raises RingreduceError on all ranks if parameters or options differ.
    """
    for slot in slots:
        grad = slot.parameter.grad
        if grad is not None:
            sparse = grad.is_sparse and not options.sparse_as_dense
            slot.kind = max(slot.kind, Kind.SPARSE if sparse else Kind.DENSE)
    said = [("the options", options.described())]
    said += [(slot.name, f"{tuple(slot.parameter.shape)} {slot.parameter.dtype}") for slot in slots]
    offer = _context.require().engine.offer_channel()
    mine = (_agreement.digest(said), bytes(slot.kind for slot in slots), list(arrivals), offer)
    everyone = allgather_object(mine, "ringreduce.plan", options.process_set)
    digests, kinds, orders, offers = zip(*everyone, strict=True)
    if len(set(digests)) > 1:
        _agreement.raise_difference("the ranks optimize different parameters", said, options.process_set)
    for slot in slots:
        slot.kind = Kind(max(of_rank[slot.index] for of_rank in kinds))
    # What rank 0 did not see comes last, in reverse registration order.
    order = list(dict.fromkeys([*orders[0], *reversed(range(len(slots)))]))
    return Agreed(order, agree_channel(list(offers)))


def build(slots: Sequence[Slot], agreed: Agreed, early: bool, options: Options) -> GradientPlan:
    """The buckets, and each slot's place in them.

    Slots of which nobody has seen a gradient share a last bucket of presence elements only.
    Unless `early`, no bucket is launched before the end of the backward pass.
    """
    wire = _wire_dtypes(slots, options)
    numels = [slot.parameter.numel() for slot in slots]
    dense = [index for index in agreed.order if slots[index].kind is Kind.DENSE]
    limit = BUCKET_BYTES
    if options.num_groups:
        nbytes = sum(numels[index] * wire[index].itemsize for index in dense)
        limit = -(-nbytes // options.num_groups)
    buckets = lay_out(dense, numels, wire, bucket_bytes=limit)
    early_buckets = len(buckets) if early else 0
    unseen = [slot.index for slot in slots if slot.kind is Kind.UNSEEN]
    if unseen:
        buckets.append(Bucket(torch.float32, unseen, [0] * len(unseen)))
    factor = options.gradient_predivide_factor
    plan = GradientPlan(
        buckets,
        early_buckets,
        agreed.channel,
        int(options.op),
        1.0 / factor,
        factor,
        options.process_set,
        _gpu_of(slots),
    )
    for at, bucket in enumerate(buckets):
        for place, index in enumerate(bucket.members):
            slot = slots[index]
            view = plan.view(at, place, slot.parameter) if slot.kind is Kind.DENSE else None
            slot.assign(at, place, view)
    return plan


def _gpu_of(slots: Sequence[Slot]) -> int | None:
    """The GPU that has all parameters; None where the CPU has them."""
    places = {_gpu.place(slot.parameter): slot for slot in slots}
    if len(places) > 1:
        where = "; ".join(f"{slot.name} on {place}" for place, slot in places.items())
        raise ValueError(f"the parameters of an optimizer are on one device ({where}); make an optimizer for each")
    first = slots[0].parameter if slots else None
    return _gpu.backend.index(first) if first is not None and _gpu.backend.holds(first) else None


def _wire_dtypes(slots: Sequence[Slot], options: Options) -> list[torch.dtype]:
    """In which dtype each gradient is reduced."""
    compression = effective(options.compression, options.process_set)
    dtypes = {slot.parameter.dtype for slot in slots}
    wire = {dtype: compression.compress(torch.zeros(1, dtype=dtype))[0].dtype for dtype in dtypes}
    return [wire[slot.parameter.dtype] for slot in slots]
