"""A gradient plan that one rank leaves, over the library's own messages: the others hear of it, and all goes on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.dlpack import from_dlpack

from ringreduce._core import Plan, PlanLeftError
from ringreduce._gradients.arena import make_arena
from ringreduce._gradients.channels import agreed_channel
from ringreduce._ops import dtypes
from ringreduce._runtime import running

SIZES = [5, 100_000, 3000]
WHY = "RuntimeError: out of memory"


def make_plan(rr) -> Plan:
    running.require()
    spec = [(elements, dtypes.CODES[torch.float32]) for elements in SIZES]
    with agreed_channel("test", rr.allgather_object) as channel:
        return make_arena(spec, int(rr.Sum), 1.0, 1.0, rr.global_process_set, channel, "test")


def fill_and_launch(plan: Plan, bucket: int) -> torch.Tensor:
    flat = from_dlpack(plan.part(bucket, 0, 0, SIZES[bucket] * 4)).view(torch.float32)
    flat.fill_(bucket + 1)
    plan.launch(bucket)
    return flat


def whole_step(plan: Plan, size: int) -> None:
    buckets = [fill_and_launch(plan, index) for index in range(len(SIZES))]
    for index, flat in enumerate(buckets):
        plan.wait(index)
        assert torch.equal(flat, torch.full_like(flat, (index + 1) * size))


def left_step(plan: Plan, leaves_at: int | None) -> None:
    for index in range(len(SIZES)):
        if index == leaves_at:
            plan.leave(WHY)
        fill_and_launch(plan, index)
    for index in range(len(SIZES)):
        plan.wait(index)


@pytest.mark.smoke
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_rank_leaves_a_step(rr, rank, size, at):
    for leaver in range(size):
        plan = make_plan(rr)
        whole_step(plan, size)
        with pytest.raises(PlanLeftError, match=f"^rank {leaver} has left the gradient step: {WHY}$"):
            left_step(plan, at if rank == leaver else None)
        total = rr.allreduce(torch.ones(3), op=rr.Sum)
        assert torch.equal(total, torch.full((3,), float(size)))
        plan.close()
    plan = make_plan(rr)
    whole_step(plan, size)
    plan.close()
