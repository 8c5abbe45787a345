"""How the drift guard cuts parameters into windows, and tells rounding from other differences."""

from __future__ import annotations

import math

import pytest
import torch

from ringreduce._core import digest
from ringreduce._gradients.drift_compare import Difference, measure
from ringreduce._gradients.drift_gpu import mix
from ringreduce._gradients.drift_windows import cut, in_memory_order, regions, whole

SHAPES = [
    [],
    [(0,)],
    [(1,)],
    [(63,)],
    [(64,), (64,)],
    [(), (1000,), (0,), (3, 5), (), (100, 100)],
    [(1,)] * 1000,
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("windows", [1, 16, 64])
def test_windows_have_each_element_once_and_equal_sizes(shapes, windows):
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.complex128]
    named = [(f"p{i}", torch.zeros(shape, dtype=dtypes[i % 4])) for i, shape in enumerate(shapes)]
    result = cut(named, windows)
    assert len(result) == windows
    covered = {name: [] for name, tensor in named if tensor.numel()}
    for window in result:
        for piece in window:
            assert piece.begin < piece.end
            covered[piece.name] += range(piece.begin, piece.end)
    assert covered == {name: list(range(tensor.numel())) for name, tensor in named if tensor.numel()}
    total = sum(tensor.nbytes for _, tensor in named)
    for window in result:
        nbytes = sum((piece.end - piece.begin) * piece.tensor.element_size() for piece in window)
        assert abs(nbytes - total / windows) <= 16


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4),
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        torch.arange(48.0).view(2, 6, 4)[:, ::2],
        torch.arange(3.0).expand(4, 3),
        torch.tensor(5.0),
        torch.arange(30.0)[3:9],
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.stride()}",
)
def test_all_elements_in_memory_order(tensor):
    flat = in_memory_order(tensor)
    assert flat.dim() == 1
    assert sorted(flat.tolist()) == sorted(tensor.flatten().tolist())
    copies: list[torch.Tensor] = []
    ((address, nbytes),) = regions(whole([("p", tensor)]), copies)
    assert nbytes == tensor.numel() * 4
    copy = flat.clone()
    assert digest([(address, nbytes)]) == digest([(copy.data_ptr(), nbytes)])


def test_a_tensor_that_has_shrunk_is_not_read():
    tensor = torch.arange(10.0)
    pieces = whole([("p", tensor)])
    tensor.data = torch.zeros(2)
    assert regions(pieces, []) == [(0, 0)]


ONE = torch.ones(10)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (ONE, ONE, (0, 0.0, True)),
        (ONE, torch.nextafter(ONE, 2 * ONE), (10, 2.0**-23, True)),
        (ONE, ONE + 2.0**-20, (10, 2.0**-20, True)),
        (ONE, ONE + 2.0**-19, (10, 2.0**-19, False)),
        (torch.tensor([1e6, 0.0]), torch.tensor([1e6, 0.5]), (1, 0.5, True)),
        (torch.tensor([0.0]), torch.tensor([-0.0]), (1, 0.0, True)),
        (torch.tensor([torch.inf]), torch.tensor([torch.inf]), (0, 0.0, True)),
        (torch.tensor([torch.inf]), torch.tensor([-torch.inf]), (1, math.inf, False)),
        (torch.tensor([torch.inf, 1.0]), torch.tensor([torch.inf, 2.0]), (1, 1.0, False)),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]), (0, 0.0, True)),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([3.0, 1.0]), (1, math.inf, False)),
        (ONE.bfloat16(), ONE.bfloat16() + 2.0**-5, (10, 2.0**-5, True)),
        (torch.tensor([1j]), torch.tensor([2j]), (1, 1.0, False)),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), (1, 1.0, False)),
        (torch.tensor([True]), torch.tensor([False]), (1, 1.0, False)),
        (torch.zeros(0), torch.zeros(0), (0, 0.0, True)),
    ],
)
def test_measure(a, b, expected):
    assert measure(a, b) == expected
    assert measure(b, a) == expected


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ([[0], [1]], "'p' differs between rank 0 and rank 1 (2 of 1,000 elements, by up to 0.5)"),
        ([[0, 1], [2]], "'p' differs on rank 2 (2 of 1,000 elements, by up to 0.5); ranks 0, 1 agree"),
        ([[0, 2], [1], [3]], "'p' differs on ranks 1, 3 (2 of 1,000 elements, by up to 0.5); ranks 0, 2 agree"),
        ([[0, 1], [2, 3]], "'p' differs between ranks 0, 1 and ranks 2, 3 (2 of 1,000 elements, by up to 0.5)"),
        ([[0], [2], [3]], "'p' differs between ranks 0, 2, 3 (2 of 1,000 elements, by up to 0.5)"),
        ([[0], [1], [2], [3]], "'p' differs between ranks 0, 1, 2, 3 (2 of 1,000 elements, by up to 0.5)"),
    ],
)
def test_which_ranks_are_named(groups, text):
    assert str(Difference("p", 1000, groups, elements=2, largest=0.5, rounding=False)) == text


def test_weights_are_those_of_splitmix64():
    def reference(x):
        mask = 2**64 - 1
        x = (x + 1) * 0x9E3779B97F4A7C15 & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return x ^ x >> 31

    found = [value % 2**64 for value in mix(torch.arange(1000)).tolist()]
    assert found == [reference(x) for x in range(1000)]
