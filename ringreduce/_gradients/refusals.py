"""What a program may not do with gradients, and what it is told: each function raises RingreduceError, or returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from ringreduce._gradients import edits
from ringreduce._gradients.slot import Slot
from ringreduce.errors import RingreduceError
from ringreduce.reduction import ReduceOp


def create_graph() -> NoReturn:
    """Gradients came with a graph."""
    raise RingreduceError(
        "backward(create_graph=True) cannot keep the graph through a reduction of gradients: get the gradients "
        "by torch.autograd.grad(..., create_graph=True), reduce them by ringreduce.grouped_allreduce(), which "
        "is differentiable, and assign them to p.grad"
    )


def changed(slot: Slot, op: ReduceOp) -> None:
    """Where p.grad was changed so that nobody knows what is local in it, or that a reduction would make wrong."""
    if op is ReduceOp.Sum and edits.was_converted(slot):
        raise RingreduceError(
            f"p.grad of {slot.name!r}, which the last step() has used, was converted with its parameter, and would "
            "be summed over the ranks once more; call zero_grad() after a conversion"
        )
    if edits.was_rewritten(slot):
        raise RingreduceError(
            f"p.grad of {slot.name!r}, which the last step() has used, was written to since: whether it is this "
            "rank's own or reduced cannot be told; assign a new tensor to p.grad (then it is reduced), or call "
            "zero_grad()"
        )
    if edits.was_edited(slot):
        raise RingreduceError(
            f"the gradient of {slot.name!r} was changed in place (clipped, unscaled) while it was still this "
            "rank's own: passes under no_sync(), or of a group that is not complete, are not reduced yet; call "
            "optimizer.synchronize() before, and step() within optimizer.skip_synchronize()"
        )


def unnoticed(slots: Iterable[Slot]) -> None:
    """Where gradients came while a parameter had no hooks."""
    for slot in slots:
        if slot.was_swapped() and slot.parameter.grad is not None:
            raise RingreduceError(
                f"{slot.name!r} was exchanged by torch.utils.swap_tensors() (in a conversion or load_state_dict() "
                "under torch.__future__.set_swap_module_params_on_conversion) after zero_grad(), and its gradient "
                "came without notice: was it reduced, or clipped before? Call optimizer.zero_grad() after that"
            )


def different_steps(ranks: Sequence[int], said: Sequence[tuple[int, bool]]) -> NoReturn:
    """`said`: by each of the `ranks` how many steps it has taken, and whether it is in step() with passes that came
    after a reduction."""
    steps = ", ".join(f"rank {rank}: {count}" for rank, (count, _) in zip(ranks, said, strict=True))
    extra = [rank for rank, (_, after) in zip(ranks, said, strict=True) if after]
    why = "let all of them decide alike, as by ringreduce.allreduce() of what they decide on"
    if extra:
        why = (
            f"step() on rank(s) {', '.join(map(str, extra))} has to reduce what a pass under no_sync() has added after "
            "the last reduction, and others have no such pass; make it on all ranks or on none"
        )
    raise RingreduceError(
        f"the ranks have taken different numbers of optimizer steps ({steps}): a step is taken by all ranks or by "
        f"none; {why}"
    )


def lost_passes(ranks: Sequence[int], lost: Sequence[tuple[int, str]]) -> NoReturn:
    """`lost`: by each of the `ranks` how many passes that only accumulate have failed, and why the last one."""
    most = max(count for count, _ in lost)
    said = [f"rank {rank}: {why}" for rank, (count, why) in zip(ranks, lost, strict=True) if count == most]
    raise RingreduceError(
        "backward passes that only accumulate (under no_sync(), or before the last of a group) have failed on a "
        f"part of the ranks ({'; '.join(said)}): what they had accumulated is missing in the reduced gradients; "
        "call zero_grad() and begin the group anew on all ranks"
    )
