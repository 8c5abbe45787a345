"""The buckets of one optimizer in memory that the ranks of a host share.

    side 0   | view | view | view | tail |   aliases of the views are handed out as p.grad
    side 1   | view | view | view | tail |   untouched, unless somebody still holds gradients of side 0

Peers reduce a bucket where it lies, so its memory is written to in every step. What a program still
holds when p.grad has been cleared (a list of gradients, a view, a numpy array) must keep its numbers,
and memory cannot move under its holder. So a bucket of which anything is held turns to its other side
for good, and from then on copies are handed out. Holders are seen by the use count of the storage: each
view has a storage of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ringreduce._core import ArenaPlan, Segment
from ringreduce._gradients import delivery
from ringreduce._gradients.holders import CAN_COUNT, Watched
from ringreduce._gradients.layout import Bucket, view_like
from ringreduce._gradients.slot import Slot, same_memory
from ringreduce._runtime import running, segments
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.objects import allgather_object


class Arena:
    """Memory and reductions of the buckets in shared memory.

    Args:
        plan: the core's.
        buckets: its layout.
    """

    reads_at_once = True

    def __init__(self, plan: ArenaPlan, buckets: Sequence[Bucket]) -> None:
        self._plan = plan
        self._buckets = buckets
        self._turned = [not CAN_COUNT] * len(buckets)
        self._offsets: dict[int, int] = {}  # slot -> element of its bucket at which the view begins
        self._views: dict[int, tuple[int, Watched]] = {}  # slot -> address of its view, and that
        self.flat = [self._part(at, 0, 0, bucket.elements) for at, bucket in enumerate(buckets)]
        self.wait = plan.wait
        self.close = plan.close
        self.set_contents = plan.set_contents

    def _part(self, bucket: int, side: int, offset: int, elements: int) -> Tensor:
        """A part of a bucket with a storage of its own."""
        dtype = self._buckets[bucket].dtype
        part = self._plan.part(bucket, side, offset * dtype.itemsize, elements * dtype.itemsize)
        tensor: Tensor = from_dlpack(part)
        return tensor.view(dtype)

    def assign(self, slot: Slot, offset: int) -> None:
        """Give the slot its view, from element `offset` of its bucket on."""
        self._offsets[slot.index] = offset
        part = self._part(slot.bucket, int(self._turned[slot.bucket]), offset, slot.parameter.numel())
        slot.view = view_like(part, 0, slot.parameter)
        del part
        self._views[slot.index] = (slot.view.data_ptr(), Watched(slot.view))

    def begin(self, bucket: int, slots: Sequence[Slot]) -> None:
        """See that nobody holds the memory, and that the views are still where they were made."""
        for slot in slots:
            if slot.view is not None and slot.view.data_ptr() != self._views[slot.index][0]:
                self.assign(slot, self._offsets[slot.index])  # share_memory_() has moved the storage
        if not self._turned[bucket] and any(self._is_held(slot) for slot in slots):
            self._turned[bucket] = True
            self.flat[bucket] = self._part(bucket, 1, 0, self._buckets[bucket].elements)
            for slot in slots:
                self.assign(slot, self._offsets[slot.index])

    def _is_held(self, slot: Slot) -> bool:
        """Whether the program has an alias of the view that is not p.grad, where it may change as in plain torch."""
        view = slot.view
        if view is None or slot.in_view() or (slot.aside is not None and same_memory(slot.aside, view)):
            return False
        return self._views[slot.index][1].is_held(*slot.keeps())

    def _hands_out(self, slot: Slot) -> bool:
        return not self._turned[slot.bucket] and self._buckets[slot.bucket].dtype is slot.parameter.dtype

    def place(self, slot: Slot) -> None:
        """The parameter's gradient has come: bring it into its view while it is in the caches."""
        if self._hands_out(slot):
            delivery.place_in_view(slot, hand_out=True)
        slot.placed = True

    def launch(self, bucket: int, placed: Sequence[Slot]) -> None:
        """See that the gradients are in their views (hooks may have changed p.grad), and start the reduction."""
        for slot in placed:
            delivery.place_in_view(slot, self._hands_out(slot))
        self._plan.launch(bucket, int(self._turned[bucket]))

    def results(self, bucket: int, slots: Sequence[Slot]) -> list[Tensor]:
        """The reduced gradients, in memory that may be handed out."""
        return [self._result(slot) for slot in slots]

    def _result(self, slot: Slot) -> Tensor:
        view = slot.view
        assert view is not None
        if slot.aside is not None or self._hands_out(slot):
            return view
        return delivery.home_memory(slot, torch.empty_like).copy_(view)

    def check_readable(self) -> None:
        """Tails can always be read."""

    def leave(self, text: str) -> None:
        """Tell the peers that this rank gives the plan up, and why."""
        self._plan.leave(text)


def make_arena(
    spec: Sequence[tuple[int, int]], op: int, prescale: float, postscale: float,
    process_set: ProcessSet, channel: int, name: str,
) -> ArenaPlan:  # fmt: skip
    """The core's plan, in a segment that the ranks of a host share. By all ranks of the set.

    Args:
        spec: (elements, dtype code) of each bucket.
        channel: number that is free on all ranks of the set, for messages between hosts.
        op, prescale, postscale: the reduction.
        name: of the optimizer.
    """
    context = running.require()
    segment = _share(context, spec, process_set, name)
    return ArenaPlan(
        context.engine, process_set.process_set_id or 0, list(spec), op, prescale, postscale, segment, channel
    )


def _share(context: running.Context, spec: Sequence[tuple[int, int]], process_set: ProcessSet, name: str) -> Segment:
    members = process_set.registered_ranks()
    local = [r for r in members if context.host_of[r] == context.host_of[context.rank]]
    nbytes, reserve = ArenaPlan.segment_bytes(len(local), list(spec))
    shared = segments.share(
        nbytes, context.rank, members, context.host_of,
        lambda item: allgather_object(item, f"{name}.arena", process_set), reserve,
    )  # fmt: skip
    assert shared.segment is not None
    return shared.segment
