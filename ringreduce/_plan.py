"""The buckets of one optimizer: agreed by all ranks, filled, launched in order.

Their memory is the arena of the host, where gradients are reduced where they lie (`ArenaBuckets`),
or on the GPU (`_gpu_buckets.GpuBuckets`).

Launches are strictly in plan order, whatever the order in which buckets fill: the peers
count on it. `GradientPlan` moves no gradient itself; the reducer does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ringreduce import _context, _dtypes, _segments
from ringreduce._buckets import Bucket, view_like
from ringreduce._core import Plan, Segment
from ringreduce._gpu_buckets import GpuBuckets
from ringreduce._slots import Slot
from ringreduce.objects import allgather_object
from ringreduce.process_set import ProcessSet


class ArenaBuckets:
    """Memory and reductions of the buckets in shared memory; the arguments are those of `Plan`."""

    def __init__(self, plan: Plan, dtypes: Sequence[torch.dtype]) -> None:
        self._plan = plan
        self.flat: list[Tensor] = [from_dlpack(plan.buffer(index)).view(dtype) for index, dtype in enumerate(dtypes)]
        self.launch, self.wait, self.close = plan.launch, plan.wait, plan.close

    def fill(self, slot: Slot) -> None:
        """The parameter's gradient is there: bring it into its view."""
        slot.fill()

    def convert(self, _bucket: int, slots: Sequence[Slot]) -> None:
        """Bring reduced gradients from the bucket to where p.grad will be."""
        for slot in slots:
            assert slot.home is not None
            assert slot.view is not None
            slot.home.copy_(slot.view)

    def check_readable(self) -> None:
        """The presence elements can be read after a reduction."""

    def begin_step(self) -> None:
        """Nothing is held back."""


class GradientPlan:
    """The buckets and the state of their current step.

    Args:
        buckets: the layout, the same on all ranks of the set.
        early: how many of them may be launched as soon as they are full; the others wait
            for `launch_rest`.
        channel: number that is free on all ranks of the set, for messages between hosts.
        op, prescale, postscale: the reduction.
        gpu: the number of the GPU on which the parameters are; None on the CPU.
    """

    def __init__(
        self, buckets: list[Bucket], early: int, channel: int, op: int, prescale: float, postscale: float,
        process_set: ProcessSet, gpu: int | None,
    ) -> None:  # fmt: skip
        self._memory: ArenaBuckets | GpuBuckets | None = None
        self.context = _context.require()
        self.buckets = buckets
        self.early = early
        self.flat: list[Tensor] = []
        if buckets:
            spec = [(bucket.elements, _dtypes.CODES[bucket.dtype]) for bucket in buckets]
            set_id = process_set.process_set_id or 0

            def arena_plan() -> Plan:
                segment = _share_arena(self.context, spec, process_set)
                return Plan(self.context.engine, set_id, spec, op, prescale, postscale, segment, channel)

            if gpu is None:
                self._memory = ArenaBuckets(arena_plan(), [bucket.dtype for bucket in buckets])
            else:
                self._memory = GpuBuckets(spec, gpu, op, prescale, postscale, process_set, channel, arena_plan)
            self.flat = self._memory.flat
        self._presence = [flat[bucket.end :] for flat, bucket in zip(self.flat, buckets, strict=True)]
        self.begin_step()

    def begin_step(self) -> None:
        """Nothing is filled, nothing launched."""
        self.missing = [len(bucket.members) for bucket in self.buckets]
        self.absent: list[list[int]] = [[] for _ in self.buckets]  # places within the tail
        self.next = 0
        if self._memory is not None:
            self._memory.begin_step()

    def give_up_step(self) -> None:
        """Join what was launched, or a CUDA graph that captured it could not be ended; then as `begin_step`."""
        assert self._memory is not None
        for index in range(self.next):
            self._memory.wait(index)
        self.begin_step()

    def view(self, bucket: int, place: int, parameter: Tensor) -> Tensor:
        """The part of a bucket that is the gradient of its `place`-th member."""
        return view_like(self.flat[bucket], self.buckets[bucket].offsets[place], parameter)

    def fill(self, slot: Slot) -> None:
        """A gradient is there, or has changed."""
        assert self._memory is not None
        self._memory.fill(slot)

    def arrived(self, bucket: int) -> None:
        """One more member of the bucket has its gradient: launch what is full and next in order."""
        self.missing[bucket] -= 1
        while self.next < self.early and self.missing[self.next] == 0:
            self._launch_next()

    def set_absent(self, bucket: int, place: int) -> None:
        """This rank has no gradient for a member (whose view the caller has zeroed)."""
        self.absent[bucket].append(place)

    def launch_rest(self) -> None:
        """Launch what is left of the step, in order."""
        while self.next < len(self.buckets):
            self._launch_next()

    def _launch_next(self) -> None:
        index = self.next
        assert self._memory is not None
        if self.absent[index]:
            self._memory.check_readable()
        presence = self._presence[index].fill_(1)
        for place in self.absent[index]:
            presence[place] = 0
        self._memory.launch(index)
        self.next += 1

    def convert(self, bucket: int, slots: Sequence[Slot]) -> None:
        """Bring reduced gradients from the bucket to `home`, where that is not the view."""
        assert self._memory is not None
        self._memory.convert(bucket, slots)

    def wait(self) -> list[list[bool]]:
        """Wait for the step's end. Returns, by bucket and place, whether any rank had a gradient.

        A bucket of which this rank filled every view is not looked at: all True.
        """
        present = []
        for index, bucket in enumerate(self.buckets):
            assert self._memory is not None
            self._memory.wait(index)
            if self.absent[index]:
                present.append((self._presence[index] != 0).tolist())
            else:
                present.append([True] * len(bucket.members))
        self.begin_step()
        return present

    def close(self) -> None:
        """Give the buckets up. Gradients that are views of them stay valid."""
        if self._memory is not None and self.context is _context.current:
            self._memory.close()
        self._memory = None

    def __del__(self) -> None:
        self.close()


def _share_arena(context: _context.Context, spec: Sequence[tuple[int, int]], process_set: ProcessSet) -> Segment:
    members = process_set.registered_ranks()
    local = [r for r in members if context.host_of[r] == context.host_of[context.rank]]
    shared = _segments.share(
        Plan.segment_bytes(len(local), list(spec)), context.rank, members, context.host_of,
        lambda item: allgather_object(item, "ringreduce.arena", process_set),
    )  # fmt: skip
    assert shared.segment is not None
    return shared.segment
