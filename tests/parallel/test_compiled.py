"""Collectives within a function under torch.compile: called as they are.

Compiling takes long: at 2 ranks only.
"""

from __future__ import annotations

import pytest
import torch

import ringreduce as rr

REST = ("allgather", "broadcast", "alltoall")


@pytest.mark.pair
@pytest.mark.parametrize(
    "call",  # all go through one function, `untraced`
    ["allreduce", "reducescatter", *(pytest.param(name, marks=pytest.mark.thorough) for name in REST)],
)
def test_a_collective_in_a_compiled_function(rank, call):
    collective = {
        "allreduce": lambda x: rr.allreduce(x, op=rr.Sum),
        "allgather": rr.allgather,
        "broadcast": lambda x: rr.broadcast(x, 0),
        "reducescatter": lambda x: rr.reducescatter(x, op=rr.Sum),
        "alltoall": rr.alltoall,
    }[call]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: collective(x * 2) + 1, backend="eager")
    for grad in (False, True):
        x = (torch.arange(4.0) + rank).requires_grad_(grad)
        expected = collective(x * 2) + 1
        for _ in range(2):
            result = compiled(x)
            assert torch.equal(result, expected)
        if grad:
            result.sum().backward()
            ours, x.grad = x.grad, None
            expected.sum().backward()
            assert torch.equal(ours, x.grad)
