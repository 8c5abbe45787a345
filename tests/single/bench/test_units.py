"""`ringreduce bench`: sizes, rates and times as people write them; what is compared."""

from __future__ import annotations

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from ringreduce.bench import units
from ringreduce.bench.collectives import COLLECTIVES
from ringreduce.bench.models import MODELS

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4", 4), ("16K", 16384), ("16k", 16384), ("1M", MIB), ("64MiB", 64 * MIB), ("2G", 2 << 30)]
)
def test_sizes(text, nbytes):
    assert units.parse_size(text) == nbytes
    assert units.parse_size(units.show_size(nbytes)) == nbytes


def test_sizes_are_sorted_and_each_once():
    assert units.parse_sizes("1M, 4,1024K") == [4, MIB]


@pytest.mark.parametrize("text", ["3X", "", "0", "-4", "1.5M", "K", "4,,8"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_sizes(text)


@pytest.mark.parametrize(("text", "rate"), [("1gbit", 125e6), ("100mbit/s", 12.5e6), ("10G", 1.25e9)])
def test_rates(text, rate):
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "1", "0gbit", "1gbyte"])
def test_bad_rates(text):
    with pytest.raises(ValueError, match="is not a rate"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2e-6, "4.20 us"), (9.996e-5, "100 us"), (0.0335, "33.5 ms"), (0.9999, "1.00 s"), (75.0, "75.0 s")],
)
def test_times(seconds, text):
    assert units.show_time(seconds) == text


@pytest.mark.parametrize(("name", "factor"), [("allreduce", 1.5), ("allgather", 0.75), ("broadcast", 1.0)])
def test_bus_factors_of_four_ranks(name, factor):
    assert COLLECTIVES[name].bus_factor(4) == factor


@pytest.mark.parametrize(
    ("name", "nbytes", "elements"),
    [("allreduce", 4, 1), ("allreduce", 1, 1), ("allreduce", 18, 4), ("allgather", 4, 3), ("allgather", 64, 15)],
)
def test_elements_on_three_ranks(name, nbytes, elements):
    assert COLLECTIVES[name].elements(nbytes, itemsize=4, size=3) == elements


@pytest.mark.parametrize(("name", "millions"), [("mlp", 50), ("gpt", 27), ("small", 17)])
def test_models_have_the_size_they_are_known_by(name, millions):
    assert round(sum(p.numel() for p in MODELS[name].build().parameters()) / 1e6) == millions
