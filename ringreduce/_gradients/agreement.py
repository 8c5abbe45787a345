"""From parameters to a plan: what the ranks agree on once, and the buckets that follow from it.

The agreement is one allgather. A rank whose backward pass fails before there is a plan takes part all
the same: it says why, does not wait, and so nobody waits for it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ringreduce._gradients import marks
from ringreduce._gradients.arena import Arena, make_arena
from ringreduce._gradients.channels import agreed_channel
from ringreduce._gradients.drift import DriftGuard
from ringreduce._gradients.gpu_memory import GpuMemory
from ringreduce._gradients.layout import BUCKET_BYTES, Bucket, lay_out
from ringreduce._gradients.options import Options
from ringreduce._gradients.plan import BucketMemory, GradientPlan
from ringreduce._gradients.slot import Kind, Slot
from ringreduce._ops import agreement, dtypes, gpus, submit
from ringreduce._ops.handle import Handle
from ringreduce._runtime import running
from ringreduce._runtime.process_set import ProcessSet
from ringreduce.compression import effective
from ringreduce.errors import PlanLeftError, RingreduceTimeoutError


class Agreed(NamedTuple):
    """The same on all ranks, as are the kinds of the slots."""

    order: list[int]  # of the slots in the buckets
    drifted: bool  # the ranks' parameters are not the same


class Meeting:
    """The exchange of one optimizer with its peers: all of them say something, or that they have failed.

    Args:
        name: of the optimizer, the same on all ranks and different from that of any other.
    """

    def __init__(self, name: str, process_set: ProcessSet) -> None:
        self.name = name
        self._set = process_set
        self._waited: tuple[Any, Handle[Any]] | None = None  # (context, a message whose wait has timed out)
        self._said: tuple[Any, int] = (None, 0)  # (context, how many messages): the n-th ones of all ranks meet
        self._given_up: list[Handle[Any]] = []  # messages that nobody here waits for, on their way

    def exchange(self, mine: Any) -> list[Any]:
        """What all ranks of the set say, in their order. PlanLeftError if one has failed."""
        if self._waited is None or self._waited[0] is not running.current:
            self._waited = (running.current, self._submit((True, mine)))
        try:
            output, sizes = self._waited[1].wait()
        except RingreduceTimeoutError:
            raise  # what was said holds, and is waited for by the next call
        except BaseException:
            self._waited = None
            raise
        self._waited = None
        said = [pickle.loads(bytes(part.tolist())) for part in output.split(sizes)]
        failed = [(rank, why) for rank, (fine, why) in zip(self._set.registered_ranks(), said, strict=True) if not fine]
        if failed:
            raise PlanLeftError("; ".join(f"rank {rank} has left the gradient step: {why}" for rank, why in failed))
        return [what for _, what in said]

    def give_up(self, why: str) -> None:
        """Tell the others, who wait in `exchange` or come to it, that this rank has failed. Does not wait.

        Once for each pass that fails, whether or not they have come to hear of the one before.
        """
        self._given_up = [handle for handle in self._given_up if not handle.done()]
        self._given_up.append(self._submit((False, why)))

    def _submit(self, message: Any) -> Handle[tuple[Tensor, list[int]]]:
        context, said = self._said
        number = said + 1 if context is running.current else 1
        self._said = (running.current, number)
        data = torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)
        return submit.allgather(data, f"{self.name}.plan{number}", self._set)


def agree(
    slots: Sequence[Slot], arrivals: Sequence[int], options: Options, meeting: Meeting, guard: DriftGuard
) -> Agreed:
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
    said += [(slot.name, _described(slot.parameter)) for slot in slots]
    kinds = bytes(slot.kind for slot in slots)
    everyone = meeting.exchange((agreement.digest(said), kinds, list(arrivals), guard.full_digest()))
    digests, kinds_of, orders, parameters = zip(*everyone, strict=True)
    if len(set(digests)) > 1:
        agreement.raise_difference("the ranks optimize different parameters", said, options.process_set)
    for slot in slots:
        slot.kind = Kind(max(of_rank[slot.index] for of_rank in kinds_of))
    # What rank 0 did not see comes last, in reverse registration order.
    order = list(dict.fromkeys([*orders[0], *reversed(range(len(slots)))]))
    return Agreed(order, len(set(parameters)) > 1)


def _described(parameter: Tensor) -> str:
    """What must agree. The stride of a dimension with one element has no meaning."""
    strides = tuple(s if n > 1 else 1 for s, n in zip(parameter.stride(), parameter.shape, strict=True))
    layout = "" if parameter.is_contiguous() else f" with strides {strides}"
    return f"{tuple(parameter.shape)} {parameter.dtype}{layout}"


def build(
    slots: Sequence[Slot], agreed: Agreed, early: bool, options: Options, meeting: Meeting, guard: DriftGuard
) -> GradientPlan:
    """The buckets, and each slot's place in them. Unless `early`, none is launched before the end of the pass."""
    buckets = _buckets(slots, agreed.order, options)
    buckets[-1].unseen = [slot.index for slot in slots if slot.kind is Kind.UNSEEN]
    buckets[-1].marks = marks.COUNT + DriftGuard.ELEMENTS
    for slot in slots:
        slot.reset()
    with agreed_channel(meeting.name, meeting.exchange) as channel:
        memory = _memory(slots, buckets, channel, options, meeting.name)
    return GradientPlan(buckets, slots, len(buckets) - 1 if early else 0, memory, guard)


def _buckets(slots: Sequence[Slot], order: Sequence[int], options: Options) -> list[Bucket]:
    wire = _wire_dtypes(slots, options)
    numels = [slot.parameter.numel() for slot in slots]
    dense = [index for index in order if slots[index].kind is Kind.DENSE]
    limit = BUCKET_BYTES
    if options.num_groups:
        nbytes = sum(numels[index] * wire[index].itemsize for index in dense)
        limit = -(-nbytes // options.num_groups)
    return lay_out(dense, numels, wire, bucket_bytes=limit) or [Bucket(torch.float32)]


def _memory(slots: Sequence[Slot], buckets: list[Bucket], channel: int, options: Options, name: str) -> BucketMemory:
    spec = [(bucket.elements, dtypes.CODES[bucket.dtype]) for bucket in buckets]
    factor = options.gradient_predivide_factor if options.process_set.size() > 1 else 1.0  # alone: to the bit
    op, scales, process_set = int(options.op), (1.0 / factor, factor), options.process_set
    gpu = _gpu_of(slots)
    if gpu is None:
        return Arena(make_arena(spec, op, *scales, process_set, channel, name), buckets)
    return GpuMemory(
        buckets, spec, gpu, op, *scales, process_set, channel, name,
        lambda: make_arena(spec, op, *scales, process_set, channel, name),
    )  # fmt: skip


def _gpu_of(slots: Sequence[Slot]) -> int | None:
    """The GPU that has all parameters; None where the CPU has them."""
    places = {gpus.place(slot.parameter): slot for slot in slots}
    if len(places) > 1:
        where = "; ".join(f"{slot.name} on {place}" for place, slot in places.items())
        raise ValueError(f"the parameters of an optimizer are on one device ({where}); make an optimizer for each")
    first = slots[0].parameter if slots else None
    return gpus.backend.index(first) if first is not None and gpus.backend.holds(first) else None


def _wire_dtypes(slots: Sequence[Slot], options: Options) -> list[torch.dtype]:
    """In which dtype each gradient is reduced."""
    compression = effective(options.compression, options.process_set)
    dtypes = {slot.parameter.dtype for slot in slots}
    wire = {d: compression.compress(torch.zeros(1, dtype=d, device="cpu"))[0].dtype for d in dtypes}
    return [wire[slot.parameter.dtype] for slot in slots]
