"""The buckets of one optimizer: agreed by all ranks, filled, launched in order.

Their memory is the arena of the host, where gradients are reduced where they lie (`arena.Arena`),
or on the GPU (`gpu_memory.GpuMemory`).

Launches are strictly in plan order, whatever the order in which buckets fill: the peers
count on it. A bucket that is full is launched when the next gradient comes, not at once, so that
hooks of the program that run after ours may still edit what is in it. The last one waits for the
end of the backward pass: so none of a step's reductions is complete anywhere before every rank has
come to the end of its pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ringreduce._gradients import delivery, edits, marks
from ringreduce._gradients.drift import DriftGuard
from ringreduce._gradients.layout import Bucket
from ringreduce._gradients.slot import Kind, Slot
from ringreduce._runtime import running


class BucketMemory(Protocol):
    """Where the buckets lie, and how they are reduced."""

    flat: list[Tensor]  # each bucket as a whole
    reads_at_once: bool  # tails can be read when a reduction is over, without holding anything up

    def set_contents(self, contents: list[str], /) -> None:
        """Say what is in each bucket, for texts."""

    def assign(self, slot: Slot, offset: int) -> None:
        """Give the slot its view, from element `offset` of its bucket on."""

    def begin(self, bucket: int, slots: Sequence[Slot]) -> None:
        """Before anything is written into the bucket in a step: see that nobody holds its memory."""

    def place(self, slot: Slot) -> None:
        """The parameter's gradient has come, or has changed."""

    def launch(self, bucket: int, placed: Sequence[Slot]) -> None:
        """See that the gradients are in their views, and start the reduction."""

    def wait(self, bucket: int) -> None:
        """Wait for the reduction."""

    def results(self, bucket: int, slots: Sequence[Slot]) -> list[Tensor]:
        """The reduced gradients, in memory that may be handed out and has the parameters' dtype."""

    def check_readable(self) -> None:
        """ValueError where a tail that has to be read cannot be."""

    def leave(self, text: str) -> None:
        """Tell the peers that this rank gives the plan up, and why."""

    def close(self) -> None:
        """Give the memory up; what was handed out stays valid."""


def _names(slots: Sequence[Slot]) -> str:
    """As many as fit into a text."""
    rest = f" and {len(slots) - 1} more" if len(slots) > 1 else ""
    return f"{slots[0].name}{rest}" if slots else "no parameters"


class GradientPlan:
    """The buckets and the state of their current step.

    Args:
        buckets: the layout, the same on all ranks of the set.
        slots: all slots, by index.
        early: how many of the buckets may be launched before the backward pass has ended.
        memory: of the buckets.
        guard: the drift guard, whose digest travels in the last bucket.
    """

    def __init__(
        self, buckets: list[Bucket], slots: Sequence[Slot], early: int, memory: BucketMemory, guard: DriftGuard
    ) -> None:
        self.context = running.require()
        self.buckets = buckets
        self.early = early
        self.can_be_late = memory.reads_at_once  # the ranks learn of late gradients from the marks
        self._memory = memory
        self._guard = guard
        self._members = [[slots[i] for i in (*bucket.members, *bucket.unseen)] for bucket in buckets]
        for at, (bucket, members) in enumerate(zip(buckets, self._members, strict=True)):
            for place, slot in enumerate(members):
                slot.assign(at, place)
                if slot.kind is Kind.DENSE:
                    memory.assign(slot, bucket.offsets[place])
        memory.set_contents([_names(members) for members in self._members])
        self.begin_step()

    def begin_step(self) -> None:
        """Nothing is filled, nothing launched."""
        self._missing = [len(bucket.members) for bucket in self.buckets]
        self._absent: list[list[int]] = [[] for _ in self.buckets]  # places in the bucket
        self._begun = [False] * len(self.buckets)
        self.next = 0

    def _presence(self, index: int) -> Tensor:
        """Who has a gradient in a bucket."""
        bucket = self.buckets[index]
        return self._memory.flat[index][bucket.end : bucket.end + bucket.presence]

    def _tail(self) -> tuple[Tensor, Tensor]:
        """The marks, and the digest of parameters."""
        last = self.buckets[-1]
        tail = self._memory.flat[-1][last.end + last.presence :]
        return tail[: marks.COUNT], tail[marks.COUNT :]

    def launched(self, slot: Slot) -> bool:
        """Whether the slot's bucket is under way in this step."""
        return slot.bucket < self.next

    def place(self, slot: Slot) -> None:
        """The slot's gradient has come, or has changed."""
        self._begin(slot.bucket)
        if not slot.placed:
            self._missing[slot.bucket] -= 1
        self._memory.place(slot)

    def launch_full(self) -> None:
        """Launch what is full and next in order."""
        while self.next < self.early and self._missing[self.next] == 0:
            self._launch_next(late=False, counts=marks.Counts())

    def launch_rest(self, late: bool, counts: marks.Counts) -> None:
        """The backward pass has ended: launch what is left of the step, in order.

        Args:
            late: this rank has gradients that came too late for their buckets.
            counts: what this rank has counted.
        """
        while self.next < len(self.buckets):
            self._launch_next(late, counts)

    def give_up_step(self) -> None:
        """Join what was launched, or a CUDA graph that captured it could not be ended; then as `begin_step`."""
        for index in range(self.next):
            self._memory.wait(index)
        self.begin_step()

    def _begin(self, bucket: int) -> None:
        if not self._begun[bucket]:
            self._begun[bucket] = True
            self._memory.begin(bucket, self._members[bucket][: len(self.buckets[bucket].members)])

    def _launch_next(self, late: bool, counts: marks.Counts) -> None:
        index = self.next
        self._begin(index)
        placed = self._settle(index)
        if self._absent[index]:
            self._memory.check_readable()
        presence = self._presence(index).fill_(1)
        for place in self._absent[index]:
            presence[place] = 0
        if index == len(self.buckets) - 1:
            said, digest = self._tail()
            if self._memory.reads_at_once:
                marks.write(said, late, counts)
            self._guard.write(digest)
        self._memory.launch(index, placed)
        self.next += 1

    def _settle(self, index: int) -> list[Slot]:
        """Whose gradients are there? Those whose are not contribute zeros, and are marked as absent."""
        placed = []
        for place, slot in enumerate(self._members[index]):
            edits.check_hooks(slot)
            if (slot.placed and slot.parameter.grad is not None) or (not slot.placed and slot.is_local()):
                if slot.kind is Kind.DENSE:
                    placed.append(slot)
                    if not slot.placed:
                        self._memory.place(slot)
            else:
                self._absent[index].append(place)
                if slot.kind is Kind.DENSE:
                    delivery.place_nothing(slot)
        return placed

    def wait(self) -> marks.Marks:
        """Wait for the step's end, and deliver the gradients of all slots that have a place.

        A bucket in which this rank had every gradient is not looked at: all are there.
        """
        for index in range(len(self.buckets)):
            self._memory.wait(index)
        for index, slots in enumerate(self._members):
            present = [True] * len(slots)
            if self._absent[index]:
                present = (self._presence(index) != 0).tolist()
            self._deliver(index, slots, present)
        self.begin_step()
        return marks.read(self._tail()[0]) if self._memory.reads_at_once else marks.Marks()

    def _deliver(self, index: int, slots: Sequence[Slot], present: Sequence[bool]) -> None:
        there = [slot for slot, anywhere in zip(slots, present, strict=True) if anywhere and slot.kind is Kind.DENSE]
        for slot, result in zip(there, self._memory.results(index, there), strict=True):
            delivery.deliver(slot, result)
        for slot, anywhere in zip(slots, present, strict=True):
            if not anywhere and slot.kind is Kind.DENSE:
                delivery.deliver(slot, None)
            elif anywhere and slot.kind is Kind.UNSEEN:
                slot.appeared = True

    def drifted(self) -> bool:
        """Whether the ranks' parameters are seen to differ."""
        return self._guard.differs(self._tail()[1])

    def leave(self, text: str) -> None:
        """Tell the peers that this rank gives the plan up."""
        if self.context is running.current:
            self._memory.leave(text)

    def close(self) -> None:
        """Give the buckets up. Gradients that are aliases of them stay valid."""
        if self.context is running.current:
            self._memory.close()

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            self.close()
