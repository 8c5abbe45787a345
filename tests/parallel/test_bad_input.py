"""A caller's mistake: ValueError or TypeError at the call, which names the argument; nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_same, make, reduced

import ringreduce as rr

pytestmark = pytest.mark.once  # refused before anything is sent

ONE = torch.ones(4)
SPARSE = torch.eye(3).to_sparse()
META = torch.ones(3, device="meta")
UNSUPPORTED = torch.ones(3).to(torch.float8_e4m3fn)
LEAF = torch.ones(3, requires_grad=True)


# What is made here makes torch load more of itself, for seconds: not where the tests are only collected.


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def wrapper() -> torch.Tensor:
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.ones(4), torch.ones(4))


def fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        return mode.from_tensor(torch.ones(4))


def zeros() -> torch.Tensor:
    """As in forward-mode differentiation."""
    return torch._efficientzerotensor(4)


def freed() -> torch.Tensor:
    """As FSDP leaves parameters between uses."""
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


def every_collective(tensor: torch.Tensor) -> dict[str, Callable[[], Any]]:
    return {
        "allreduce": lambda: rr.allreduce(tensor),
        "allreduce_": lambda: rr.allreduce_(tensor),
        "allreduce_ with a name": lambda: rr.allreduce_(tensor, name="no memory"),
        "grouped": lambda: rr.grouped_allreduce_([ONE.clone(), tensor], op=rr.Max),
        "allgather": lambda: rr.allgather(tensor),
        "broadcast": lambda: rr.broadcast(tensor, 0),
        "broadcast_": lambda: rr.broadcast_(tensor, 0),
        "reducescatter": lambda: rr.reducescatter(tensor),
        "alltoall": lambda: rr.alltoall(tensor, [4] + [0] * (rr.size() - 1)),
    }


def wrong_op(call: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    return {
        "unknown number": lambda: call(ONE, op=17),
        "text": lambda: call(ONE, op="sum"),
        "negative": lambda: call(ONE, op=-1),
    }


# argument -> calls, each of which has a bad one
CASES: dict[str, dict[str, Callable[[], Any]]] = {
    "op": {
        **wrong_op(rr.allreduce),
        "asynchronous": lambda: rr.allreduce_async(ONE, op=17),
        "in place": lambda: rr.allreduce_(ONE, op=17),
        "grouped": lambda: rr.grouped_allreduce([ONE], op=17),
        "reducescatter": lambda: rr.reducescatter(ONE, op=17),
        "Average of bool": lambda: rr.allreduce(torch.ones(3, dtype=torch.bool), op=rr.Average),
        "Average of bool in place": lambda: rr.allreduce_(torch.ones(3, dtype=torch.bool), op=rr.Average),
        "Min of complex": lambda: rr.allreduce(torch.ones(3, dtype=torch.complex64), op=rr.Min),
        "Max of complex": lambda: rr.allreduce(torch.ones(3, dtype=torch.complex128), op=rr.Max),
    },
    "tensor": {
        "a list": lambda: rr.allreduce([1.0, 2.0]),
        "a list, in place": lambda: rr.allreduce_([1.0, 2.0]),
        "a number": lambda: rr.broadcast(3.0, 0),
        "None": lambda: rr.allgather(None),
        "sparse": lambda: rr.allreduce(SPARSE),
        "unsupported dtype": lambda: rr.allreduce(UNSUPPORTED),
        "unsupported dtype, in place": lambda: rr.allreduce_(UNSUPPORTED.clone()),
        "unsupported dtype, allgather": lambda: rr.allgather(UNSUPPORTED),
        "unsupported dtype, alltoall": lambda: rr.alltoall(UNSUPPORTED),
        "unsupported dtype, reducescatter": lambda: rr.reducescatter(UNSUPPORTED),
        "unknown device": lambda: rr.allreduce(META),
        "unknown device, in place": lambda: rr.allreduce_(META),
        "unknown device, broadcast": lambda: rr.broadcast(META, 0),
        "scalar in allgather": lambda: rr.allgather(torch.tensor(1.0)),
        "scalar in reducescatter": lambda: rr.reducescatter(torch.tensor(1.0)),
        "scalar in alltoall": lambda: rr.alltoall(torch.tensor(1.0)),
        "requires grad, in place": lambda: rr.allreduce_(LEAF),
        "requires grad, broadcast in place": lambda: rr.broadcast_(LEAF, 0),
        "nested": lambda: rr.allreduce(nested()),
        "nested, in place": lambda: rr.allreduce_(nested()),
        "quantized, in place": lambda: rr.allreduce_(torch.quantize_per_tensor(ONE, 0.1, 0, torch.quint8)),
        "compressed rows, in place": lambda: rr.allreduce_(torch.eye(3).to_sparse_csr()),
        "half complex, in place": lambda: rr.allreduce_(torch.ones(3, dtype=torch.complex32)),
        "grouped, one is no tensor": lambda: rr.grouped_allreduce([ONE, 3.0]),
        "grouped, one on an unknown device": lambda: rr.grouped_allreduce([ONE, META]),
    },
    "root_rank": {
        "too large": lambda: rr.broadcast(ONE, rr.size()),
        "negative": lambda: rr.broadcast(ONE, -1),
        "in place": lambda: rr.broadcast_(ONE, rr.size()),
        "asynchronous": lambda: rr.broadcast_async(ONE, rr.size()),
        "no int": lambda: rr.broadcast(ONE, "0"),
        "of an object": lambda: rr.broadcast_object(1, root_rank=rr.size()),
    },
    "splits": {
        "too few": lambda: rr.alltoall(ONE, []),
        "too many": lambda: rr.alltoall(ONE, [4] + [0] * rr.size()),
        "wrong sum": lambda: rr.alltoall(ONE, [5] + [0] * (rr.size() - 1)),
        "negative": lambda: rr.alltoall(ONE, [-4] * rr.size()),
        "float tensor": lambda: rr.alltoall(ONE, torch.tensor([4.0] + [0.0] * (rr.size() - 1))),
        "fractions": lambda: rr.alltoall(ONE, [4.5] + [0.0] * (rr.size() - 1)),
        "no list": lambda: rr.alltoall(ONE, 4),
        "two dimensions": lambda: rr.alltoall(ONE, torch.tensor([[4] + [0] * (rr.size() - 1)], dtype=torch.int32)),
    },
    "prescale_factor": {
        "text": lambda: rr.allreduce(ONE, prescale_factor="2"),
        "None, in place": lambda: rr.allreduce_(ONE, prescale_factor=None),
    },
    "postscale_factor": {"text": lambda: rr.allreduce(ONE, postscale_factor="2")},
    "name": {
        "a number": lambda: rr.allreduce(ONE, name=3),
        "a number, broadcast": lambda: rr.broadcast(ONE, 0, name=3),
        "a number, of an object": lambda: rr.broadcast_object(1, 0, name=3),
        "half a character": lambda: rr.allreduce(ONE, name="\udc80"),
        "half a character, of a parameter": lambda: rr.broadcast_parameters({"\udc80": ONE}),
        "half a character, of an object": lambda: rr.allgather_object(1, name="x\ud800"),
    },
    "handle": {"no handle": lambda: rr.poll("handle")},
}


@pytest.mark.parametrize("argument", CASES)
def test_the_argument_is_named(rank, size, argument):
    for what, call in CASES[argument].items():
        with pytest.raises((ValueError, TypeError)) as info:
            call()
        assert argument in str(info.value), f"{what}: {info.value}"
        assert not isinstance(info.value, rr.RingreduceError)
    assert ONE.tolist() == [1.0] * 4, "a tensor was written to"
    result = rr.allreduce(make(rank, 11, torch.float32), op=rr.Sum)
    assert_same(result, reduced(range(size), 11, torch.float32, rr.Sum), "afterwards")


def test_the_message_says_what_was_given_and_what_is_allowed(size):
    for call, words in (
        (lambda: rr.allreduce(UNSUPPORTED), ("float8_e4m3fn", "bfloat16")),
        (lambda: rr.allreduce(ONE, op=17), ("17", "Average", "Sum", "Min", "Max", "Product")),
        (lambda: rr.allreduce(META), ("meta", "cpu")),
        (lambda: rr.broadcast(ONE, size + 5), (str(size + 5), str(size - 1))),
        (lambda: rr.alltoall(ONE, [7] * size), ("7", str(size), "4")),
    ):
        with pytest.raises(ValueError, match=r".") as info:
            call()
        for word in words:
            assert word in str(info.value), f"{word} is missing in: {info.value}"


@pytest.mark.parametrize("made", [zeros, fake, wrapper, freed], ids=lambda made: made.__name__)
def test_tensors_without_memory(made):
    for what, call in every_collective(made()).items():
        with pytest.raises(ValueError, match=r"^tensor.*without memory") as info:
            call()
        assert not isinstance(info.value, rr.RingreduceError), what
    assert ONE.tolist() == [1.0] * 4


def test_a_lazy_clone_is_written_to_alone(size):
    """Copy on write: the memory is shared until one is written to."""
    for call in (rr.allreduce_, lambda x, **more: rr.allreduce_(x, name="lazy", **more)):
        original = torch.ones(4)
        clone = torch._lazy_clone(original)
        call(clone, op=rr.Sum, postscale_factor=3.0)
        assert original.tolist() == [1.0] * 4
        assert clone.tolist() == [3.0 * size] * 4


def test_numbers_of_numpy(rank, size):
    numpy = pytest.importorskip("numpy")
    x = torch.ones(3)
    for scale in (numpy.float32(2), numpy.float64(2), numpy.int64(2)):
        assert rr.allreduce(x, op=rr.Sum, prescale_factor=scale).tolist() == [2.0 * size] * 3
        assert rr.allreduce_(x.clone(), op=rr.Sum, postscale_factor=scale).tolist() == [2.0 * size] * 3
    assert rr.broadcast(torch.tensor([rank]), numpy.int64(size - 1)).item() == size - 1
    assert rr.broadcast_object(rank, numpy.int32(0)) == 0
    _, received = rr.alltoall(torch.ones(size), numpy.ones(size, dtype=numpy.int32))
    assert received.tolist() == [1] * size
    assert rr.ProcessSet(numpy.arange(2)).ranks == [0, 1]
    model = torch.nn.Linear(2, 1)
    rr.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=numpy.float64(0.1)),
        backward_passes_per_step=numpy.int64(2), gradient_predivide_factor=numpy.float32(2),
    )  # fmt: skip


def test_torchs_defaults_change_nothing(rank, size):
    """What the library makes for itself is where, and of the type that, it needs."""
    expected = defaults_matter(rank, size)
    before = torch.get_default_dtype()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float16)
    try:
        results = defaults_matter(rank, size)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert str(results) == str(expected)
    with torch.inference_mode():
        assert str(defaults_matter(rank, size)) == str(expected)


def defaults_matter(rank: int, size: int) -> list[Any]:
    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.float32, device="cpu")

    return [
        rr.allreduce(ones(3)), rr.allreduce_(ones(3)), rr.allgather(ones(2, 2)), rr.allgather(ones(2, 0)).shape,
        rr.broadcast(ones(3), 0), rr.reducescatter(ones(size, 2)), rr.alltoall(ones(size), [1] * size),
        rr.alltoall(ones(size, 0), [1] * size)[1], rr.grouped_allreduce([ones(2), ones(3)]),
        rr.allgather_object("x" * rank), rr.broadcast_object({"a": rank}), rr.broadcast_parameters({"a": ones(2)}),
        rr.broadcast_optimizer_state(torch.optim.SGD([ones(1)])),
    ]  # fmt: skip


def test_rows_that_do_not_divide(size):
    if size == 1:
        pytest.skip("everything divides by one")
    with pytest.raises(ValueError, match="splits"):
        rr.alltoall(torch.ones(size + 1))


def test_one_rank_alone_makes_the_mistake(rank, size):
    """The others are not disturbed: nothing was submitted."""
    if rank == 0:
        with pytest.raises(ValueError, match="op"):
            rr.allreduce(ONE, op=17)
        with pytest.raises(ValueError, match="root_rank"):
            rr.broadcast(ONE, 99)
    assert rr.allreduce(torch.ones(2), op=rr.Sum).tolist() == [size, size]
