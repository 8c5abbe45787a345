"""Derivatives of the collectives, against one process that holds the inputs of all ranks.

`MODELS` says in plain torch what each collective gives on every rank. A gradient through a collective is
that of the sum of all ranks' losses, times `mean` where the library's convention is an average. A gradient
of a gradient is the collective itself, so there the factor is gone again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch.autograd import forward_ad

import ringreduce as rr

pytestmark = pytest.mark.once  # made of collectives that have tests of their own

Tensors = list[torch.Tensor]


def reduce(stacked: torch.Tensor, op: int) -> torch.Tensor:
    """Over dimension 0. amax and amin share a gradient equally among ties."""
    if op == rr.Max:
        return stacked.amax(0)
    if op == rr.Min:
        return stacked.amin(0)
    return {rr.Sum: torch.sum, rr.Average: torch.mean, rr.Product: torch.prod}[op](stacked, 0)


def parts(tensor: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    return torch.tensor_split(tensor, size)


def allreduced(xs: Tensors, op: int, pre: float = 1.0, post: float = 1.0) -> Tensors:
    return [reduce(torch.stack(xs) * pre, op) * post] * len(xs)


def scattered(xs: Tensors, op: int, pre: float = 1.0, post: float = 1.0) -> Tensors:
    return list(parts(reduce(torch.stack(xs) * pre, op) * post, len(xs)))


def splits_of(source: int, size: int) -> list[int]:
    return [(source + 2 * target) % 3 for target in range(size)]


def exchanged(xs: Tensors) -> Tensors:
    size = len(xs)
    pieces = [x[: sum(splits_of(r, size))].split(splits_of(r, size)) for r, x in enumerate(xs)]
    return [torch.cat([pieces[source][target] for source in range(size)]) for target in range(size)]


class Case(NamedTuple):
    call: Callable[[torch.Tensor], torch.Tensor]  # what this rank does
    model: Callable[[Tensors], Tensors]  # what all ranks get
    mean: Callable[[int], float] = lambda size: 1.0


CASES: dict[str, Case] = {
    "allgather": Case(
        lambda x: rr.allgather(x[: rr.rank() + 1]),
        lambda xs: [torch.cat([x[: r + 1] for r, x in enumerate(xs)])] * len(xs),
        lambda size: 1 / size,
    ),
    "broadcast": Case(lambda x: rr.broadcast(x, rr.size() - 1), lambda xs: [xs[-1]] * len(xs), lambda size: 1 / size),
    "alltoall": Case(
        lambda x: rr.alltoall(x[: sum(splits_of(rr.rank(), rr.size()))], splits_of(rr.rank(), rr.size()))[0], exchanged
    ),
    "grouped": Case(
        lambda x: torch.cat(rr.grouped_allreduce([x[:2], x[2:].t().float()], op=rr.Max, name="pair")[0:1]),
        lambda xs: [reduce(torch.stack(xs), rr.Max)[:2]] * len(xs),
    ),
}
for op in (rr.Sum, rr.Average, rr.Min, rr.Max, rr.Product):
    for pre, post in ((1.0, 1.0), (-0.5, 3.0)):
        arguments: Any = {"op": op, "prescale_factor": pre, "postscale_factor": post}
        CASES[f"allreduce {op.name} {pre} {post}"] = Case(
            lambda x, arguments=arguments: rr.allreduce(x, **arguments),
            lambda xs, op=op, pre=pre, post=post: allreduced(xs, op, pre, post),
        )
        CASES[f"reducescatter {op.name} {pre} {post}"] = Case(
            lambda x, arguments=arguments: rr.reducescatter(x, **arguments),
            lambda xs, op=op, pre=pre, post=post: scattered(xs, op, pre, post),
            lambda size, op=op: float(size) if op in (rr.Sum, rr.Average) else 1.0,
        )


def inputs(size: int, dtype: torch.dtype = torch.float64) -> Tensors:
    """What every rank has [12, 2]: few different numbers, so that ranks tie, and zeros, one and several."""
    torch.manual_seed(5)
    return [torch.randint(-2, 3, (12, 2)).to(dtype) * 0.5 for _ in range(size)]


def like(tensors: Tensors, seed: int) -> Tensors:
    torch.manual_seed(seed)
    return [torch.randn(tensor.shape, dtype=tensor.dtype) for tensor in tensors]


def leaves(tensors: Tensors) -> Tensors:
    return [tensor.clone().requires_grad_() for tensor in tensors]


def assert_near(result: torch.Tensor | None, expected: torch.Tensor, what: str) -> None:
    assert result is not None, what
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gradients(rank, size, name):
    case = CASES[name]
    xs = leaves(inputs(size))
    ys = case.model(xs)
    gs = leaves(like(ys, 6))
    vs = like(xs, 7)
    mean = case.mean(size)

    x, g = xs[rank].detach().requires_grad_(), gs[rank].detach().requires_grad_()
    y = case.call(x)
    assert_near(y, ys[rank], "result")
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    expected = torch.autograd.grad(ys, xs, gs, create_graph=True, allow_unused=True, materialize_grads=True)
    assert_near(first, expected[rank] * mean, "gradient")

    second = torch.autograd.grad((first * vs[rank]).sum(), [g, x], allow_unused=True, create_graph=True)
    total = sum((e * v).sum() for e, v in zip(expected, vs, strict=True))
    wanted = torch.autograd.grad(total, gs + xs, allow_unused=True, materialize_grads=True)
    assert_near(second[0], wanted[rank], "by the outer gradient")
    at_x = torch.zeros_like(x) if second[1] is None else second[1]
    assert_near(at_x, wanted[size + rank], "by the input")


@pytest.mark.parametrize("name", CASES)
def test_forward_mode(rank, size, name):
    case = CASES[name]
    xs = inputs(size)
    ts = like(xs, 8)
    with forward_ad.dual_level():
        expected = case.model([forward_ad.make_dual(x, t) for x, t in zip(xs, ts, strict=True)])[rank]
        result = case.call(forward_ad.make_dual(xs[rank], ts[rank]))
        assert_near(forward_ad.unpack_dual(result).primal, forward_ad.unpack_dual(expected).primal, "result")
        assert_near(forward_ad.unpack_dual(result).tangent, forward_ad.unpack_dual(expected).tangent, "tangent")


def test_ties_share_a_gradient(rank, size):
    """As torch's amax and amin do within one tensor; documented in docs/algorithms.md."""
    x = torch.tensor([1.0, float(rank), float(rank % 2)], requires_grad=True)
    rr.allreduce(x, op=rr.Max).sum().backward()
    holders = size // 2 if size > 1 else 1
    odd = rank % 2 == 1 or size == 1
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([1.0, size * (rank == size - 1), odd * size / holders])


def test_product_with_zeros(rank, size):
    """The gradient at a single zero is the product of the others; with two zeros all are zero."""
    x = torch.tensor([0.0 if rank == 0 else 2.0, 0.0 if rank < 2 else 2.0], requires_grad=True)
    rr.allreduce(x, op=rr.Product).sum().backward()
    assert x.grad is not None
    one = size * 2.0 ** (size - 1) if rank == 0 else 0.0
    two = {1: float(rank == 0), 2: 0.0}.get(size, 0.0)
    assert x.grad.tolist() == [one, two]


def test_product_of_complex_numbers(rank, size):
    torch.manual_seed(3)
    xs = leaves([torch.randn(4, dtype=torch.complex128) for _ in range(size)])
    ys = allreduced(xs, rr.Product)
    gs = like(ys, 4)
    x = xs[rank].detach().requires_grad_()
    (result,) = torch.autograd.grad(rr.allreduce(x, op=rr.Product), x, gs[rank])
    assert_near(result, torch.autograd.grad(ys, xs, gs)[rank], "gradient")


def test_several_gradients_of_one_call(rank, size):
    """Two gradients of one output, each differentiated again: four derivatives with a name each."""
    x = torch.full((3,), 2.0, requires_grad=True)
    g, h = torch.ones(3, requires_grad=True), torch.full((3,), float(rank), requires_grad=True)
    y = rr.allreduce(x * x, op=rr.Sum)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    (second,) = torch.autograd.grad(y, x, h, create_graph=True)
    by_g, by_h, by_x = torch.autograd.grad((first * 3 + second * 5).sum(), [g, h, x])
    assert by_g.tolist() == [3 * 4.0 * size] * 3
    assert by_h.tolist() == [5 * 4.0 * size] * 3
    assert by_x.tolist() == [2.0 * (3 * size + 5 * sum(range(size)))] * 3


def test_a_refused_call_is_not_counted(rank, size):
    """One rank's mistake does not shift the numbers by which later gradients are matched."""
    x = torch.ones(3, requires_grad=True)
    if rank == 0:
        with pytest.raises(ValueError, match="op"):
            rr.allreduce(x, op=17)
        with pytest.raises(ValueError, match="splits"):
            rr.alltoall(x, [1] * (size + 3))
    rr.allreduce(x, op=rr.Sum).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [size] * 3


def test_transforms_of_torch_func(rank, size):
    xs = inputs(size)
    x = xs[rank]
    for op in (rr.Sum, rr.Max, rr.Product):

        def loss(x: torch.Tensor, op: int = op) -> torch.Tensor:
            return (rr.allreduce(x, op=op) ** 2).sum()

        def model(x: torch.Tensor, op: int = op) -> torch.Tensor:
            everyone = [x if r == rank else other for r, other in enumerate(xs)]
            return (reduce(torch.stack(everyone), op) ** 2).sum()

        assert_near(torch.func.grad(loss)(x), torch.func.grad(model)(x) * size, f"grad, op {op}")
        together = torch.func.vmap(torch.func.grad(loss))(torch.stack([x, x + 1, x - 1]))
        for got, shifted in zip(together, (x, x + 1, x - 1), strict=True):
            assert_near(got, torch.func.grad(loss)(shifted), f"vmap of grad, op {op}")
        _, tangent = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
        leaf = x.clone().requires_grad_()
        (by_x,) = torch.autograd.grad(loss(leaf), leaf)
        assert_near(tangent, rr.allreduce(by_x.sum() / size, op=rr.Sum), f"jvp, op {op}")

    rows = torch.func.vmap(rr.allgather, in_dims=1, out_dims=1)(x)
    assert_near(rows, torch.cat(xs), "vmap of allgather")
    with pytest.raises(ValueError, match="scalar"):
        torch.func.vmap(rr.allgather)(torch.ones(3))


def test_forward_mode_refuses_what_it_cannot_do(rank):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        for call in (
            rr.allreduce_,
            rr.allreduce_async_,
            lambda x: rr.broadcast_(x, 0),
            lambda x: rr.allreduce_(x, "n"),
        ):
            with pytest.raises(ValueError, match="tangent"):
                call(dual)
    assert rr.allreduce_(torch.ones(2)).tolist() == [1.0, 1.0]


def test_in_place_collectives_bump_the_version(rank):
    """Autograd notices that a tensor which it has saved was written to."""
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "allreduce_": rr.allreduce_,
        "allreduce_ with a name": lambda x: rr.allreduce_(x, name="bump"),
        "allreduce_async_": lambda x: rr.allreduce_async_(x).wait(),
        "grouped": lambda x: rr.grouped_allreduce_([x, torch.ones(1)]),
        "broadcast_": lambda x: rr.broadcast_(x, 0),
        "broadcast_async_": lambda x: rr.broadcast_async_(x, 0).wait(),
        "broadcast_parameters": lambda x: rr.broadcast_parameters([("x", x)]),
    }
    for what, call in calls.items():
        for strided in (False, True):
            x = torch.ones(4, 2).t() if strided else torch.ones(2, 4)
            w = torch.ones(2, 4, requires_grad=True)
            y = (x * w).sum()
            call(x)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()
            assert w.grad is None, what
    with torch.inference_mode():
        frozen = torch.ones(3)
    assert rr.allreduce_(frozen).tolist() == [1.0] * 3  # it has no version
    assert rr.broadcast_(frozen, 0).tolist() == [1.0] * 3
