"""Gradients of the synchronous collectives.

Each test takes the loss `(output * weight).sum()`, where the weight depends on the rank, so the
gradient of the output is the weight, and the gradient of the input is known.
"""

from __future__ import annotations

import pytest
import torch
from oracle import assert_same, average_ulps, make, reduced

import ringreduce as rr

pytestmark = pytest.mark.once  # made of collectives that have tests of their own


def leaf(rank: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return make(rank, shape, dtype).requires_grad_()


def gradient(output: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    assert output.requires_grad
    x.grad = None
    (output * weight).sum().backward()
    assert x.grad is not None
    return x.grad


def test_allreduce(rank, size):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for op in (rr.Sum, rr.Average):
            x = leaf(rank, (5, 3), dtype)
            weight = make(rank + 1, (5, 3), dtype)
            result = gradient(rr.allreduce(x, op=op), weight, x)
            expected = reduced([other + 1 for other in range(size)], (5, 3), dtype, op)
            assert_same(result, expected, f"allreduce op {op} {dtype}", ulps=average_ulps(size))


def test_allreduce_with_scale_factors(rank, size):
    x = leaf(rank, (7,))
    weight = make(rank + 1, 7, torch.float32)
    output = rr.allreduce(x, op=rr.Sum, prescale_factor=0.5, postscale_factor=4.0)
    expected = 2 * reduced([other + 1 for other in range(size)], 7, torch.float32, rr.Sum)
    assert_same(gradient(output, weight, x), expected, "scaled")


def test_grouped_allreduce(rank, size):
    inputs = [leaf(rank + k, (k + 1, 2)) for k in range(3)]
    weights = [make(rank + 2 * k, (k + 1, 2), torch.float32) for k in range(3)]
    outputs = rr.grouped_allreduce(inputs, op=rr.Sum)
    sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    for k, x in enumerate(inputs):
        expected = reduced([other + 2 * k for other in range(size)], (k + 1, 2), torch.float32, rr.Sum)
        assert_same(x.grad, expected, f"tensor {k}")


def test_allgather(rank, size):
    rows = [other % 3 + 1 for other in range(size)]
    x = leaf(rank, (rows[rank], 2))
    weight = make(rank + 1, (sum(rows), 2), torch.float32)
    mean = reduced([other + 1 for other in range(size)], (sum(rows), 2), torch.float32, rr.Average)
    own = mean.split(rows)[rank]
    assert_same(gradient(rr.allgather(x), weight, x), own, "allgather", ulps=average_ulps(size))


def test_broadcast(rank, size):
    for root in range(size):
        x = leaf(rank, (4, 2))
        weight = make(rank + 1, (4, 2), torch.float32)
        result = gradient(rr.broadcast(x, root), weight, x)
        mean = reduced([other + 1 for other in range(size)], (4, 2), torch.float32, rr.Average)
        expected = mean if rank == root else torch.zeros(4, 2)
        assert_same(result, expected, f"root {root}", ulps=average_ulps(size))


def test_reducescatter(rank, size):
    rows = [(2 * size + 1) // size + (other < (2 * size + 1) % size) for other in range(size)]
    for op, factor in ((rr.Average, 1), (rr.Sum, size)):
        x = leaf(rank, (2 * size + 1, 3))
        weight = make(rank + 1, (rows[rank], 3), torch.float32)
        expected = factor * torch.cat([make(r + 1, (rows[r], 3), torch.float32) for r in range(size)])
        assert_same(gradient(rr.reducescatter(x, op=op), weight, x), expected, f"reducescatter op {op}")


def test_alltoall(rank, size):
    def count(source: int, target: int) -> int:
        return (source + 2 * target) % 4

    splits = [count(rank, target) for target in range(size)]
    x = leaf(rank, (sum(splits), 2))
    output, received = rr.alltoall(x, splits)
    assert not received.requires_grad
    weights = [
        make(target + 1, (sum(count(s, target) for s in range(size)), 2), torch.float32) for target in range(size)
    ]
    pieces = [weights[target].split([count(source, target) for source in range(size)])[rank] for target in range(size)]
    assert_same(gradient(output, weights[rank], x), torch.cat(pieces), "alltoall")

    x = leaf(rank, (size, 2))
    weights = [make(target + 1, (size, 2), torch.float32) for target in range(size)]
    expected = torch.stack([weight[rank] for weight in weights])
    assert_same(gradient(rr.alltoall(x), weights[rank], x), expected, "alltoall in equal parts")


def test_backward_in_another_order_than_forward(rank, size):
    """Gradients are matched by the call they belong to, whatever else runs in between."""
    x = leaf(rank, (3,))
    outputs = [rr.allreduce(x * (k + 1), op=rr.Sum, name=f"branch {k}" if k % 2 else None) for k in range(6)]
    for k in (4, 1, 0, 5, 2, 3):
        rr.allreduce(torch.ones(1))
        outputs[k].backward(torch.full((3,), float(10**k)), retain_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [size * sum((k + 1) * 10**k for k in range(6))] * 3


def test_through_a_model(rank, size):
    """An allgather between two layers, as in a contrastive loss, against one process's gradient."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    data = torch.randn(2 * size, 4)
    features = rr.allgather(layer(data[2 * rank : 2 * rank + 2]))
    (features @ features.t()).logsumexp(1).sum().backward()
    mine = rr.allreduce(layer.weight.grad, op=rr.Sum)

    alone = torch.nn.Linear(4, 3)
    alone.load_state_dict(layer.state_dict())
    whole = alone(data)
    (whole @ whole.t()).logsumexp(1).sum().backward()
    torch.testing.assert_close(mine, alone.weight.grad, rtol=1e-5, atol=1e-5)


def test_no_graph_where_none_is_wanted(rank):
    x = leaf(rank, (3,))
    with torch.no_grad():
        assert not rr.allreduce(x).requires_grad
    assert not rr.allreduce(x.detach()).requires_grad
    assert not rr.synchronize(rr.allreduce_async(x.detach())).requires_grad
